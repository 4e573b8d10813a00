# sam3d_ros on a Jetson with JetPack 7 (CUDA 13, TensorRT 10.13): Thor.
#
#   docker build -f docker/jetpack7.Dockerfile -t sam3d_ros:jetpack7 .
#   docker run --rm -it --runtime nvidia --net host --ipc host -v sam3d_cache:/cache sam3d_ros:jetpack7
#
# BASE is an Ubuntu 24.04 that holds CUDA and TensorRT with its Python module; ROS 2 jazzy is installed from
# packages.ros.org.
ARG BASE=nvcr.io/nvidia/tensorrt:25.08-py3
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive ROS_DISTRO=jazzy PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT=
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl \
    && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
      -o /usr/share/keyrings/ros-archive-keyring.gpg \
    && . /etc/os-release && echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] \
http://packages.ros.org/ros2/ubuntu $UBUNTU_CODENAME main" > /etc/apt/sources.list.d/ros2.list \
    && apt-get update && apt-get install -y --no-install-recommends \
      libegl1 libgl1 libgomp1 libusb-1.0-0 python3-colcon-common-extensions python3-pip python3-rosdep \
      ros-$ROS_DISTRO-ros-base \
    && rm -rf /var/lib/apt/lists/*
# Looked for, not imported: its libraries are partly the Jetson's own, and there only when a container runs.
RUN python3 -c "import importlib.util as util, sys; sys.exit(util.find_spec('tensorrt') is None)" \
    || (apt-get update && apt-get install -y --no-install-recommends python3-libnvinfer) \
    || (echo "BASE needs TensorRT's Python module" && false)
WORKDIR /ws
COPY . src/sam3d_ros
RUN pip3 install --no-cache-dir -r src/sam3d_ros/requirements.txt \
    && . /opt/ros/$ROS_DISTRO/setup.sh \
    && (rosdep init || true) && rosdep update --rosdistro $ROS_DISTRO && apt-get update \
    && rosdep install --from-paths src --ignore-src -y --skip-keys ament_cmake_pytest \
    && colcon build --packages-select sam3d_ros && rm -rf /var/lib/apt/lists/* build log

ENV SAM3D_CACHE=/cache
RUN mkdir -m 700 /cache
SHELL ["/bin/bash", "-c"]
CMD source install/setup.bash && exec ros2 launch sam3d_ros sam3d.launch.py
