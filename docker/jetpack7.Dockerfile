# sam3d_ros on a Jetson with JetPack 7 (CUDA 13, TensorRT 10.13): Thor.
#
#   docker build -f docker/jetpack7.Dockerfile -t sam3d_ros:jetpack7 .
#   docker run --rm -it --runtime nvidia --net host --ipc host -v sam3d_cache:/cache sam3d_ros:jetpack7
#
# BASE has to hold CUDA, TensorRT with its Python module, and ROS 2 jazzy below /opt/ros; which images do changes with
# every release: pass another with --build-arg BASE=...
ARG BASE=nvcr.io/nvidia/tensorrt:25.08-py3
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive ROS_DISTRO=jazzy
RUN python3 -c "import tensorrt; print('TensorRT', tensorrt.__version__)" && test -d /opt/ros/$ROS_DISTRO \
    || (echo "BASE needs TensorRT's Python module and ROS 2 $ROS_DISTRO" && false)
RUN apt-get update && apt-get install -y --no-install-recommends \
      libegl1 libgl1 libgomp1 libusb-1.0-0 python3-colcon-common-extensions python3-pip python3-rosdep \
    && rm -rf /var/lib/apt/lists/*
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
