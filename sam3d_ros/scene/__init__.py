"""From single frames to one scene: tracking, fusion of views, physics, and meshes for planners and simulators."""
