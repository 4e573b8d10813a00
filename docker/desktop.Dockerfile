# sam3d_ros on a desktop with an NVIDIA GPU: ROS 2 Jazzy, CUDA 13 and TensorRT-RTX from PyPI.
#
#   docker build -f docker/desktop.Dockerfile -t sam3d_ros:desktop .
#   docker run --rm -it --gpus all --net host --ipc host -v sam3d_cache:/cache sam3d_ros:desktop
FROM ros:jazzy-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
      libegl1 libgl1 libgomp1 libusb-1.0-0 python3-pip ros-jazzy-tf2-ros ros-jazzy-vision-msgs \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ws
COPY . src/sam3d_ros
# Ubuntu's numpy is what Jazzy's binaries were built against: requirements.txt keeps pip from replacing it.
RUN pip install --no-cache-dir --break-system-packages -r src/sam3d_ros/requirements.txt tensorrt-rtx-cu13 \
    && . /opt/ros/jazzy/setup.sh \
    && rosdep update --rosdistro jazzy && apt-get update \
    && rosdep install --from-paths src --ignore-src -y --skip-keys ament_cmake_pytest \
    && colcon build --packages-select sam3d_ros && rm -rf /var/lib/apt/lists/* build log

# Engines are kept here: give it a volume, or every container builds its own.
ENV SAM3D_CACHE=/cache NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN mkdir -m 700 /cache
SHELL ["/bin/bash", "-c"]
CMD source install/setup.bash && exec ros2 launch sam3d_ros sam3d.launch.py
