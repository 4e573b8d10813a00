"""The engine cache gives back what was stored, and nothing else."""
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import stat
import time
import tracemalloc

import pytest

from sam3d_ros.runtime import engine_cache
from sam3d_ros.runtime.engine import EngineError
from sam3d_ros.runtime.engine_cache import MAGIC, EngineCache, EngineKey, default_folder

KEY = EngineKey("a" * 64, "tensorrt 10.3.0", "12.6", "540.4", "Orin", "8.7", "fp16", "crops 1", "")
PLAN = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path):
    cache = EngineCache(tmp_path / "cache")
    cache.store(KEY, PLAN, {"check": "vIoU 0.9990"})
    return cache


def engine_file(cache, key=KEY):
    return cache.folder / f"{key.digest}.engine"


def sidecar_file(cache):
    return cache.folder / f"{KEY.digest}.json"


def refused(reason, action, *words):
    """The action is refused for this reason, in these words."""
    with pytest.raises(EngineError) as error:
        action()
    assert error.value.reason == reason
    assert all(word in error.value.detail for word in words), error.value.detail


unsafe = functools.partial(refused, "ENGINE_CACHE_UNSAFE")
not_kept = functools.partial(refused, "ENGINE_NOT_KEPT")


def test_what_was_stored_comes_back(cache):
    assert cache.load(KEY) == PLAN
    assert cache.load(dataclasses.replace(KEY, precision="fp32")) is None
    entry, = cache.entries()
    assert entry.key == KEY and entry.bytes == len(PLAN) and not entry.problem and entry.details["check"]
    cache.store(KEY, PLAN[::-1], {})
    assert cache.load(KEY) == PLAN[::-1] and len(cache.entries()) == 1


def test_the_folder_and_its_files_are_private(cache):
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in cache.folder.iterdir()} == {0o600}
    assert not list(cache.folder.glob("*.tmp"))


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o720, 0o755])
def test_a_folder_open_to_others_is_refused(cache, mode):
    cache.folder.chmod(mode)
    for action in (lambda: cache.load(KEY), lambda: cache.store(KEY, PLAN, {}), cache.entries, cache.remove):
        unsafe(action, "open to others", "chmod 700")


def test_a_folder_of_another_owner_is_refused(cache, monkeypatch):
    monkeypatch.setattr(engine_cache.os, "geteuid", lambda: os.getuid() + 1)
    unsafe(lambda: cache.load(KEY), "belongs to user")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_a_file_of_another_owner_is_refused(cache):
    os.chown(engine_file(cache), 12345, -1)
    unsafe(lambda: cache.load(KEY), "belongs to user 12345")
    assert "belongs to user 12345" in cache.entries()[0].problem
    os.chown(cache.folder, 12345, -1)
    unsafe(lambda: cache.load(KEY), "belongs to user 12345")


@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_a_file_that_others_can_write_is_refused(cache, suffix):
    file = cache.folder / (KEY.digest + suffix)
    file.chmod(0o620)
    unsafe(lambda: cache.load(KEY), "can be written by others")


@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_links_are_refused(cache, tmp_path, suffix):
    file = cache.folder / (KEY.digest + suffix)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    unsafe(lambda: cache.load(KEY), "symbolic link")
    assert "symbolic link" in cache.entries()[0].problem


def test_a_linked_folder_is_refused(cache, tmp_path):
    cache.folder.rename(tmp_path / "elsewhere")
    cache.folder.symlink_to(tmp_path / "elsewhere")
    unsafe(lambda: cache.load(KEY), "symbolic link")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "engines").write_text("")
    unsafe(lambda: EngineCache(tmp_path).load(KEY), "not a folder")


def test_neither_pipes_nor_folders_are_opened(cache):
    engine_file(cache).unlink()
    os.mkfifo(engine_file(cache), 0o600)
    unsafe(lambda: cache.load(KEY), "not a plain file")          # and does not wait for a writer
    engine_file(cache).unlink()
    engine_file(cache).mkdir()
    unsafe(lambda: cache.load(KEY), "not a plain file")


def swapped(data):
    return MAGIC + b"x" * (len(data) - len(MAGIC))


@pytest.mark.parametrize(("change", "said"), [
    (lambda data: data[:-1], "10239 bytes instead of 10240"),
    (lambda data: data[:5], "not written by sam3d_ros"),
    (lambda data: b"", "not written by sam3d_ros"),
    (lambda data: data + b"x", "10241 bytes instead of 10240"),
    (lambda data: b"ftrt" + data[4:], "not written by sam3d_ros"),
    (lambda data: data[:100] + b"\xff" + data[101:], "SHA-256"),
    (swapped, "SHA-256")])
def test_a_changed_engine_counts_as_absent(cache, change, said, caplog):
    engine_file(cache).write_bytes(change(engine_file(cache).read_bytes()))
    assert cache.load(KEY) is None and said in caplog.text
    assert said in cache.entries()[0].problem


def test_the_engine_of_another_key_counts_as_absent(cache, caplog):
    other = dataclasses.replace(KEY, device="Thor")
    cache.store(other, PLAN[::-1], {})
    engine_file(cache).write_bytes(engine_file(cache, other).read_bytes())       # swapped, but its sidecar is not
    assert cache.load(KEY) is None and "bytes instead" in caplog.text or "SHA-256" in caplog.text
    sidecar_file(cache).write_bytes((cache.folder / f"{other.digest}.json").read_bytes())
    assert cache.load(KEY) is None and "built for something else" in caplog.text
    assert cache.load(other) == PLAN[::-1]


def test_oversized_files_are_not_read(cache, caplog, monkeypatch):
    monkeypatch.setattr(engine_cache, "MAX_PLAN_BYTES", 1000)
    assert cache.load(KEY) is None and "more than the" in caplog.text
    with pytest.raises(EngineError, match="larger than"):
        cache.store(KEY, PLAN, {})
    sidecar_file(cache).write_bytes(b" " * (engine_cache.MAX_DETAILS_BYTES + 1))
    assert cache.load(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"key": 3}', '{"key": {"model": "a"}}', "\xff",
                                  '{"key": "x", "bytes": "many", "sha256": 1}',
                                  pytest.param("[" * 30_000, id="deep list"),
                                  pytest.param('{"x":' * 10_000, id="deep object")])
def test_a_broken_sidecar_counts_as_absent(cache, text):
    sidecar_file(cache).write_text(text, encoding="latin-1")
    assert cache.load(KEY) is None
    assert cache.entries()[0].problem


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_size_that_is_no_number_of_bytes_counts_as_absent(cache, text):
    sidecar = sidecar_file(cache).read_text()
    sidecar_file(cache).write_text(sidecar.replace(f'"bytes": {len(PLAN)}', f'"bytes": {text}'))
    assert cache.load(KEY) is None
    assert "not complete" in cache.entries()[0].problem


def test_a_deeply_nested_key_counts_as_absent(cache):
    sidecar = sidecar_file(cache).read_text()
    sidecar_file(cache).write_text(sidecar.replace('"Orin"', "[" * 700 + "]" * 700))
    assert cache.load(KEY) is None
    assert cache.entries()[0].problem


def test_half_an_entry_counts_as_absent(cache):
    engine_file(cache).unlink()
    assert cache.load(KEY) is None and "missing" in cache.entries()[0].problem
    cache.store(KEY, PLAN, {})
    sidecar_file(cache).unlink()
    assert cache.load(KEY) is None and "missing" in cache.entries()[0].problem


def test_a_write_that_fails_leaves_the_old_engine(cache, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(engine_cache.os, "fsync", fail)
    not_kept(lambda: cache.store(KEY, PLAN[::-1], {}), str(cache.folder), "disk full")
    monkeypatch.undo()
    assert cache.load(KEY) == PLAN and not [name for name in os.listdir(cache.folder) if name.endswith(".tmp")]


def test_what_a_killed_process_left_is_not_in_the_way_of_the_next_with_its_number(cache):
    (cache.folder / f".x.timing.{os.getpid()}.tmp").write_bytes(b"half a note")
    cache.write_note("x.timing", b"abc")
    assert cache.read_note("x.timing") == b"abc"


def test_a_temporary_file_is_never_one_that_was_there(cache, monkeypatch):
    monkeypatch.setattr(engine_cache.secrets, "token_hex", lambda count: "0" * 2 * count)
    there = cache.folder / f".x.timing.{'0' * 16}.tmp"
    there.write_bytes(b"another's")
    not_kept(lambda: cache.write_note("x.timing", b"abc"), "File exists")
    assert there.read_bytes() == b"another's"


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be written or made any more, as on a file system that is mounted so."""
    opened = os.open

    def mkdir(path, mode=0o777, *, dir_fd=None):
        raise OSError(errno.EEXIST if os.path.isdir(path) else errno.EROFS, "refused", str(path))

    def open_to_read(path, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "refused", str(path))
        return opened(path, flags, *arguments, **options)

    def make():
        monkeypatch.setattr(os, "mkdir", mkdir)
        monkeypatch.setattr(os, "open", open_to_read)

    return make


def place_below_a_file(tmp_path, read_only):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


def place_that_is_a_file(tmp_path, read_only):
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def place_that_cannot_be_written(tmp_path, read_only):
    read_only()
    return tmp_path / "cache"


@pytest.mark.parametrize("place", [place_below_a_file, place_that_is_a_file, place_that_cannot_be_written])
def test_a_cache_that_cannot_be_made_is_empty(tmp_path, read_only, place, caplog):
    cache = EngineCache(place(tmp_path, read_only))
    with cache.locked():
        assert cache.load(KEY) is None and cache.read_note("x.timing") == b""
    assert "is not held against other processes" in caplog.text and "is not loaded" in caplog.text
    for action in (lambda: cache.store(KEY, PLAN, {}), lambda: cache.write_note("x.timing", b""),
                   cache.locked(required=True).__enter__):
        not_kept(action, str(cache.folder))
    for action in (cache.entries, cache.remove):
        with pytest.raises(OSError):
            action()


def test_a_cache_that_cannot_be_written_is_read(cache, read_only, caplog):
    cache.write_note("x.timing", b"abc")
    read_only()
    with cache.locked():
        assert cache.load(KEY) == PLAN and cache.read_note("x.timing") == b"abc"
    assert "is not held against other processes" in caplog.text
    cache.folder.chmod(0o770)
    for action in (lambda: cache.load(KEY), lambda: cache.read_note("x.timing"), cache.locked().__enter__):
        unsafe(action, "open to others")


def test_an_engine_that_cannot_be_read_counts_as_absent(cache, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "broken disk")

    cache.write_note("x.timing", b"abc")
    monkeypatch.setattr(engine_cache.os, "fdopen", fail)
    assert cache.load(KEY) is None and "broken disk" in caplog.text and cache.read_note("x.timing") == b""


def test_a_failure_of_the_work_under_the_lock_is_not_hidden(cache):
    with pytest.raises(OSError, match="the work"), cache.locked():
        raise OSError("the work")


def test_a_linked_lock_is_refused(cache, tmp_path):
    (cache.folder / "lock").symlink_to(tmp_path / "elsewhere")
    unsafe(cache.locked().__enter__, "lock", "symbolic link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks(cache, monkeypatch, caplog):
    def fail(file, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(engine_cache.fcntl, "flock", fail)
    with cache.locked():
        assert cache.load(KEY) == PLAN
    assert "no locks" in caplog.text


def test_a_temporary_file_that_is_renamed_meanwhile_does_not_stop_the_lock(cache, monkeypatch):
    listed = os.listdir
    monkeypatch.setattr(engine_cache.os, "listdir", lambda folder: [".cpu.json.0.tmp", *listed(folder)])
    with cache.locked():
        assert cache.load(KEY) == PLAN


def test_removal(cache):
    other = dataclasses.replace(KEY, device="Thor")
    cache.store(other, PLAN, {})
    cache.write_note("x.timing", b"t")
    for key in (KEY, other):
        cache.write_note(f"{key.digest}.kernels", b"k")
    assert [entry.key for entry in cache.remove(lambda entry: entry.key == other)] == [other]
    assert cache.load(KEY) == PLAN and cache.load(other) is None
    assert cache.read_note(f"{KEY.digest}.kernels") == b"k" and not cache.read_note(f"{other.digest}.kernels")
    engine_file(cache).write_bytes(b"")
    assert len(cache.remove(lambda entry: True)) == 1 and not cache.entries() and cache.read_note("x.timing") == b"t"
    cache.write_note("cpu.json", b"{}")
    assert cache.remove() == [] and not cache.read_note("x.timing") and cache.read_note("cpu.json") == b"{}"


def test_notes(cache):
    assert cache.read_note("x.timing") == b""
    cache.write_note("x.timing", b"abc")
    assert cache.read_note("x.timing") == b"abc"


def test_a_note_is_kept_though_another_takes_the_lock_while_it_is_written(cache, monkeypatch):
    """Who does so deletes temporary files, of which nobody could tell that they are still written."""
    written = os.fsync

    def fsync(file):
        monkeypatch.setattr(engine_cache.os, "fsync", written)
        with cache.locked():
            written(file)

    monkeypatch.setattr(engine_cache.os, "fsync", fsync)
    cache.write_note("x.timing", b"abc")
    assert cache.read_note("x.timing") == b"abc" and not list(cache.folder.glob("*.tmp"))


def test_why_a_note_is_not_kept_is_said_though_its_temporary_file_was_deleted(cache, monkeypatch):
    def full(file):
        with cache.locked():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine_cache.os, "fsync", full)
    not_kept(lambda: cache.write_note("x.timing", b"abc"), "No space left on device")


def hold(folder, locked, seconds):
    with EngineCache(folder).locked():
        locked.set()
        time.sleep(seconds)
        os._exit(0)                     # killed while it has the lock


def test_one_process_at_a_time_and_none_keeps_the_lock_when_it_dies(cache, tmp_path):
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "cache", locked, 0.5))
    process.start()
    assert locked.wait(10)
    waits = []
    (cache.folder / ".left.123.tmp").write_bytes(b"half an engine")
    with cache.locked(lambda: waits.append(1)):
        assert waits and not (cache.folder / ".left.123.tmp").exists()
    process.join()


def test_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, found in ((str(tmp_path), tmp_path), ("~/engines", tmp_path / "home" / "engines")):
        monkeypatch.setenv("SAM3D_CACHE", given)
        assert default_folder() == found
    monkeypatch.delenv("SAM3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "sam3d_ros"
    for ignored in ("", "xdg"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == tmp_path / "home" / ".cache" / "sam3d_ros"


def test_a_user_without_a_home_has_no_cache(monkeypatch, tmp_path):
    """As in a container that is started with a number for a user.  Only what must be kept is an error."""
    for variable in ("SAM3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    cache = EngineCache()
    assert cache.load(KEY) is None and cache.read_note("cpu.json") == b""
    with cache.locked():
        for action in (lambda: cache.store(KEY, PLAN, {}), cache.locked(required=True).__enter__):
            not_kept(action, "this user has no home folder: set SAM3D_CACHE")
        with pytest.raises(OSError, match="this user has no home folder: set SAM3D_CACHE"):
            cache.entries()
    assert not list(tmp_path.iterdir())


def test_a_refusal_takes_the_place_of_the_engine(cache, monkeypatch):
    assert cache.refusal(KEY) == "" and cache.refusal(dataclasses.replace(KEY, device="Thor")) == ""
    cache.refuse(KEY, "vIoU 0.9", {})
    assert cache.refusal(KEY) == "vIoU 0.9" and cache.load(KEY) is None and not engine_file(cache).exists()
    entry, = cache.entries()
    assert (entry.key, entry.bytes, entry.problem) == (KEY, 0, "vIoU 0.9")
    cache.refuse(KEY, "vIoU 0.8", {})
    assert cache.refusal(KEY) == "vIoU 0.8"
    with monkeypatch.context() as patch:
        patch.setattr(engine_cache, "__version__", "99.0")
        assert cache.refusal(KEY) == "" and cache.load(KEY) is None        # another version builds it anew
    cache.store(KEY, PLAN, {})
    assert cache.refusal(KEY) == "" and cache.load(KEY) == PLAN
    cache.refuse(KEY, "vIoU 0.7", {})
    assert len(cache.remove()) == 1 and cache.refusal(KEY) == "" and not cache.entries()


@pytest.mark.parametrize("text", ["", "[]", '{"refused": "x"}', '{"key": 3, "refused": "x"}'])
def test_a_broken_refusal_is_none(cache, text):
    sidecar_file(cache).write_text(text)
    assert cache.refusal(KEY) == ""


def test_a_refusal_by_others_is_refused(cache):
    cache.refuse(KEY, "vIoU 0.9", {})
    sidecar_file(cache).chmod(0o622)
    unsafe(lambda: cache.refusal(KEY), "can be written by others")


def test_reading_takes_no_more_memory_than_there_is_to_read(cache):
    tracemalloc.start()
    cache.load(KEY)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_sidecar_says_what_it_is(cache):
    sidecar = json.loads(sidecar_file(cache).read_text())
    assert sidecar["key"]["device"] == "Orin" and sidecar["bytes"] == len(PLAN) and len(sidecar["sha256"]) == 64
