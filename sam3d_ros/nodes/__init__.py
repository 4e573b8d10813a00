"""Executables: the only place, with `ros`, that imports rclpy."""
