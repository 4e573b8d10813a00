"""Scenes for simulators: SDF (Gazebo), MJCF (MuJoCo), glTF and USD. Metres, kilograms, +Z up (glTF: +Y, as it demands).

Every writer makes the files of one format in a folder and returns the main one, which is written last, after that of an
earlier scene was removed: where it exists, it and the meshes that it names are whole. Meshes are in the object frame;
convex pieces are what collides.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from .layout import Scene, SceneObject

SDF_VERSION = "1.9"          # what both Gazebo Garden and Harmonic read
_FRICTION = 0.8             # of all objects in a simulator
_SUPPORT = (1.2, 1.2, 0.04)  # metres, of the plate below the objects, at least
_BEYOND = 0.2                # metres of plate beyond the objects, at least
_CAMERA = "camera_optical_frame"    # where the objects were seen from: a robot that knows its camera has its place


def write_sdf(scene: Scene, folder: Path) -> Path:
    """scene.sdf, a world with a table top and a model per object; meshes beside it."""
    file = _main_file(folder, "scene.sdf")
    root = xml.Element("sdf", version=SDF_VERSION)
    world = xml.SubElement(root, "world", name="sam3d_scene")
    light = xml.SubElement(world, "light", name="sun", type="directional")
    _leaf(light, "pose", "0 0 3 0 0 0")
    _leaf(light, "direction", "-0.4 0.2 -0.9")
    support = xml.SubElement(world, "model", name="support")
    _leaf(support, "static", "true")
    size = _support(scene)
    _leaf(support, "pose", f"0 0 {-size[2] / 2} 0 0 0")
    link = xml.SubElement(support, "link", name="link")
    for kind in ("visual", "collision"):
        box = xml.SubElement(xml.SubElement(xml.SubElement(link, kind, name=kind), "geometry"), "box")
        _leaf(box, "size", _text(size))
    _leaf(xml.SubElement(world, "frame", name=_CAMERA), "pose", _sdf_pose(scene.world_from_camera))
    for item in scene.objects:
        _write_pieces(item, folder)
        model = xml.SubElement(world, "model", name=item.name)
        _leaf(model, "pose", _sdf_pose(item.world_from_object))
        link = xml.SubElement(model, "link", name="link")
        inertial = xml.SubElement(link, "inertial")
        _leaf(inertial, "pose", f"{_text(item.centre_of_mass)} 0 0 0")
        _leaf(inertial, "mass", f"{item.mass:.9g}")
        inertia = xml.SubElement(inertial, "inertia")
        for first, second in ("xx", "xy", "xz", "yy", "yz", "zz"):
            _leaf(inertia, f"i{first}{second}", f"{item.inertia['xyz'.index(first), 'xyz'.index(second)]:.9g}")
        visual = xml.SubElement(link, "visual", name="visual")
        _sdf_mesh(visual, f"meshes/{item.name}.obj")
        material = xml.SubElement(visual, "material")
        for part in ("ambient", "diffuse"):
            _leaf(material, part, f"{_text(_colour(item))} 1")
        for number in range(len(item.pieces)):
            collision = xml.SubElement(link, "collision", name=f"piece_{number}")
            _sdf_mesh(collision, f"meshes/{_piece_name(item, number)}.obj")
            ode = xml.SubElement(xml.SubElement(xml.SubElement(collision, "surface"), "friction"), "ode")
            _leaf(ode, "mu", str(_FRICTION))
            _leaf(ode, "mu2", str(_FRICTION))
    return _write_xml(root, file)


def write_mjcf(scene: Scene, folder: Path) -> Path:
    """scene.xml, a table top and a free body per object; meshes beside it."""
    file = _main_file(folder, "scene.xml")
    root = xml.Element("mujoco", model="sam3d_scene")
    xml.SubElement(root, "compiler", meshdir="meshes")
    option = xml.SubElement(root, "option", integrator="implicitfast", cone="elliptic")
    xml.SubElement(option, "flag", multiccd="enable")       # else one contact at a time carries a mesh, and it rocks
    default = xml.SubElement(root, "default")
    xml.SubElement(default, "geom", condim="4", friction=f"{_FRICTION} 0.01 0.001")
    assets = xml.SubElement(root, "asset")
    world = xml.SubElement(root, "worldbody")
    xml.SubElement(world, "light", pos="0.4 -0.2 2", dir="-0.2 0.1 -1")
    size = _support(scene)
    xml.SubElement(world, "geom", name="support", type="box", size=_text(size / 2), pos=f"0 0 {-size[2] / 2}",
                   rgba="0.7 0.68 0.63 1")
    xml.SubElement(world, "site", name=_CAMERA, group="4", **_mjcf_pose(scene.world_from_camera))    # not shown
    for item in scene.objects:
        _write_pieces(item, folder)
        body = xml.SubElement(world, "body", name=item.name, **_mjcf_pose(item.world_from_object))
        xml.SubElement(body, "freejoint")
        inertia = item.inertia[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        xml.SubElement(body, "inertial", pos=_text(item.centre_of_mass), mass=f"{item.mass:.9g}",
                       fullinertia=_text(inertia))
        xml.SubElement(assets, "mesh", name=item.name, file=f"{item.name}.obj")
        xml.SubElement(body, "geom", type="mesh", mesh=item.name, contype="0", conaffinity="0", group="2", mass="0",
                       rgba=f"{_text(_colour(item))} 1")
        for number in range(len(item.pieces)):
            piece = _piece_name(item, number)
            xml.SubElement(assets, "mesh", name=piece, file=f"{piece}.obj")
            xml.SubElement(body, "geom", type="mesh", mesh=piece, group="3", mass="0")
    return _write_xml(root, file)


def write_gltf(scene: Scene, folder: Path) -> Path:
    """scene.glb: a coloured mesh per object, +Y up; mass and inertia are not in the format, and left out."""
    y_up = trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0])
    gathered = trimesh.Scene()
    for item in scene.objects:
        looks = TextureVisuals(material=PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0))    # its default is metal
        looks.vertex_attributes["color"] = np.rint(255 * np.column_stack([_linear(item.rgb), np.ones(len(item.rgb))]))
        mesh = trimesh.Trimesh(item.mesh.vertices, item.mesh.faces, visual=looks, process=False)
        gathered.add_geometry(mesh, node_name=item.name, geom_name=item.name, transform=y_up @ item.world_from_object)
    gathered.graph.update(frame_to=_CAMERA, matrix=y_up @ scene.world_from_camera)
    return _write(_main_file(folder, "scene.glb"), gathered.export(file_type="glb"))


def write_usd(scene: Scene, folder: Path) -> Path:
    """scene.usda: a table top and a rigid body per object by UsdPhysics; the simulator cuts the meshes itself."""
    size = _support(scene)
    parts = [_usd_xform("support", np.eye(4), "", [], [
        'def Cube "plate" (prepend apiSchemas = ["PhysicsCollisionAPI"])', "{", "    double size = 1",
        f"    double3 xformOp:translate = (0, 0, {-size[2] / 2})",
        f"    float3 xformOp:scale = ({', '.join(map(str, size))})",
        '    uniform token[] xformOpOrder = ["xformOp:translate", "xformOp:scale"]', "}"])]
    parts.append(_usd_xform(_CAMERA, scene.world_from_camera, "", [], []))
    parts += [_usd_object(item) for item in scene.objects]
    text = ('#usda 1.0\n(\n    defaultPrim = "World"\n    metersPerUnit = 1\n    kilogramsPerUnit = 1\n'
            '    upAxis = "Z"\n)\n\ndef Xform "World"\n{\n    def PhysicsScene "physics"\n    {\n'
            '        vector3f physics:gravityDirection = (0, 0, -1)\n'
            '        float physics:gravityMagnitude = 9.81\n    }\n'
            + "".join(parts) + "}\n")
    return _write(_main_file(folder, "scene.usda"), text.encode())


WRITERS: dict[str, Callable[[Scene, Path], Path]] = {
    "sdf": write_sdf, "mjcf": write_mjcf, "gltf": write_gltf, "usd": write_usd}


def clear_scene(folder: Path) -> None:
    """Remove earlier scenes: the formats share meshes/, which is about to change."""
    for name in ("scene.sdf", "scene.xml"):
        (folder / name).unlink(missing_ok=True)


def _main_file(folder: Path, name: str) -> Path:
    """A file in a folder that exists then; that of an earlier scene is removed, whose meshes are about to change."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    return folder / name


def _write(file: Path, content: bytes) -> Path:
    """A file, whole or not at all."""
    try:
        file.write_bytes(content)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return file


def _support(scene: Scene) -> np.ndarray:
    """(3,) metres: size of the plate; its middle is below the origin, its upper side at z = 0."""
    reach = np.max([np.abs(trimesh.transform_points(item.mesh.vertices, item.world_from_object)[:, :2]).max(axis=0)
                    for item in scene.objects], axis=0)
    return np.append(np.maximum(2 * (reach + _BEYOND), _SUPPORT[:2]), _SUPPORT[2])


def _usd_object(item: SceneObject) -> str:
    values, axes = np.linalg.eigh(item.inertia)
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    x, y, z, w = Rotation.from_matrix(axes).as_quat()
    mass = [f"float physics:mass = {item.mass:.9g}",
            f"point3f physics:centerOfMass = {_usd_tuple(item.centre_of_mass)}",
            f"float3 physics:diagonalInertia = {_usd_tuple(values)}",
            f"quatf physics:principalAxes = {_usd_tuple((w, x, y, z))}"]
    corners = ", ".join(map(_usd_tuple, item.mesh.vertices))
    colours = ", ".join(map(_usd_tuple, _linear(item.rgb)))
    mesh = ['def Mesh "mesh" (prepend apiSchemas = ["PhysicsCollisionAPI", "PhysicsMeshCollisionAPI"])', "{",
            '    uniform token subdivisionScheme = "none"',
            '    uniform token physics:approximation = "convexDecomposition"',
            f"    point3f[] points = [{corners}]",
            f"    int[] faceVertexCounts = [{', '.join(['3'] * len(item.mesh.faces))}]",
            f"    int[] faceVertexIndices = [{', '.join(map(str, item.mesh.faces.ravel()))}]",
            f'    color3f[] primvars:displayColor = [{colours}] (interpolation = "vertex")', "}"]
    schemas = '(prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"])'
    return _usd_xform(item.name, item.world_from_object, schemas, mass, mesh)


def _usd_xform(name: str, pose: np.ndarray, schemas: str, attributes: list[str], children: list[str]) -> str:
    # USD multiplies row vectors: its matrix is the transpose of ours.
    rows = ", ".join(map(_usd_tuple, pose.T))
    lines = [f'def Xform "{name}" {schemas}'.rstrip(), "{",
             f"    matrix4d xformOp:transform = ({rows})", '    uniform token[] xformOpOrder = ["xformOp:transform"]',
             *(f"    {line}" for line in (*attributes, *children)), "}"]
    return "".join(f"    {line}\n" for line in lines)


def _usd_tuple(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.9g}' for value in values)})"


def _piece_name(item: SceneObject, number: int) -> str:
    """No object has such a name: they hold no hyphen."""
    return f"{item.name}-{number}"


def _write_pieces(item: SceneObject, folder: Path) -> None:
    """meshes/<name>.obj and meshes/<name>-<n>.obj, one per convex piece."""
    meshes = folder / "meshes"
    meshes.mkdir(parents=True, exist_ok=True)
    _write_obj(meshes / f"{item.name}.obj", item.mesh.vertices, item.mesh.faces)
    for number, corners in enumerate(item.pieces):
        hull = trimesh.Trimesh(corners, process=False).convex_hull
        _write_obj(meshes / f"{_piece_name(item, number)}.obj", hull.vertices, hull.faces)


def _write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"v {x:.7f} {y:.7f} {z:.7f}\n" for x, y, z in vertices)
        file.writelines(f"f {a} {b} {c}\n" for a, b, c in np.asarray(faces) + 1)


def _mjcf_pose(pose: np.ndarray) -> dict[str, str]:
    """Attributes of an element that stands there."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return {"pos": _text(pose[:3, 3]), "quat": _text((w, x, y, z))}


def _sdf_mesh(parent: xml.Element, uri: str) -> None:
    _leaf(xml.SubElement(xml.SubElement(parent, "geometry"), "mesh"), "uri", uri)


def _sdf_pose(pose: np.ndarray) -> str:
    """x y z and roll pitch yaw about fixed axes."""
    return f"{_text(pose[:3, 3])} {_text(Rotation.from_matrix(pose[:3, :3]).as_euler('xyz'))}"


def _colour(item: SceneObject) -> np.ndarray:
    return item.rgb.mean(axis=0) / 255


def _linear(rgb: np.ndarray) -> np.ndarray:
    """Colours of an image, (N, 3) uint8, sRGB, as intensities, (N, 3), 0 to 1: what glTF and USD hold."""
    values = rgb / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _leaf(parent: xml.Element, name: str, text: str) -> None:
    xml.SubElement(parent, name).text = text


def _write_xml(root: xml.Element, file: Path) -> Path:
    xml.indent(root)
    return _write(file, xml.tostring(root, encoding="utf-8") + b"\n")
