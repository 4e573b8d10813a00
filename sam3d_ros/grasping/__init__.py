"""A reference consumer of the meshes: grasps for a parallel gripper. ROS-free."""
