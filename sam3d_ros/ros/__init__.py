"""Between ROS 2 messages and arrays: synchronisation, QoS, parameters, diagnostics, transforms."""
