"""Complete metric object meshes and 6D poses from camera images and instance masks, for ROS 2."""
from pkgutil import extend_path

# The generated `msg` and `action` packages live in the installed copy of this package; extending the search path
# lets the source tree find them.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
