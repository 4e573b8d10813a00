#!/bin/sh
# Measures sam3d_ros on this Jetson (or any machine with an NVIDIA GPU) and leaves one JSON file that can be contributed:
# put it into benchmarks/results/ and open a pull request.  What cannot be built is left out of it, and the rest measured.
#
#   docker/jetson_benchmark.sh [FILE]
set -eu
device=$(tr -d '\0' < /proc/device-tree/model 2>/dev/null || nvidia-smi --query-gpu=name --format=csv,noheader || uname -m)
file=${1:-bytes_to_mesh_$(echo "$device" | tr -cs 'A-Za-z0-9\n' '_' | head -n 1).json}
command -v nvpmodel > /dev/null && nvpmodel -q || true
command -v jetson_clocks > /dev/null && echo "For steady clocks, run first: sudo jetson_clocks"
sam3d doctor || true
for engine in tensorrt tensorrt-rtx; do
    sam3d engine build --engine "$engine" || echo "$engine is not measured"
done
sam3d bench latency --runs 200 -o "$file" || true       # fails if the bar is missed, too, which is a result
test -s "$file" && echo "$file"
