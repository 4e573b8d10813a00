"""From single frames to one scene: tracks, fusion of views, and what the scene tells the planners."""
