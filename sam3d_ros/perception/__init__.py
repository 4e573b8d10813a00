"""From a camera frame to reconstructed objects, free of ROS."""
