"""Programs that the guest runs as jobs for what would keep it from answering probes: archives and watching.

Each is a text for ``python -c``: standard library, output on standard output, a word on standard error, exit code 1.
"""

PACK = r"""
import os, sys, tarfile
path, zipped = sys.argv[1], sys.argv[2]
if not os.path.lexists(path):
    sys.exit("%s: no such file or directory" % path)
if os.path.isdir(path) and not os.path.islink(path):
    names = [(name, os.path.join(path, name)) for name in sorted(os.listdir(path))]
else:
    names = [(os.path.basename(path), path)]
def fit(entry):
    return entry if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk() else None
mode = "w|gz" if zipped == "1" else "w|"
with tarfile.open(fileobj=sys.stdout.buffer, mode=mode, bufsize=1 << 20, format=tarfile.PAX_FORMAT) as made:
    for name, source in names:
        try:
            made.add(source, name, filter=fit)
        except FileNotFoundError:
            pass
"""
"""Of a directory its entries; of a file itself. Sockets and devices are left out."""

UNPACK = r"""
import os, shutil, sys, tarfile
path = os.path.abspath(sys.argv[1])
os.makedirs(path, exist_ok=True)
count = 0
def inside(name):
    root = os.path.realpath(path)
    return os.path.commonpath([root, os.path.realpath(os.path.join(path, name))]) == root
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*", bufsize=1 << 20) as given:
    for entry in given:
        if os.path.isabs(entry.name) or not inside(entry.name):
            sys.exit("the archive's entry %r lies outside of %s" % (entry.name, path))
        if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            continue
        entry.uid = entry.gid = os.getuid()
        entry.uname = entry.gname = ""
        target = os.path.join(path, entry.name)
        if os.path.islink(target) or (os.path.lexists(target) and not entry.isdir()):
            os.unlink(target)
        if hasattr(tarfile, "fully_trusted_filter"):
            given.extract(entry, path, set_attrs=not entry.isdir(), filter="fully_trusted")
        else:
            given.extract(entry, path, set_attrs=not entry.isdir())
        count += 1
print(count)
"""

WATCH = r"""
import json, os, sys, time
path, every_s, limit = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def look():
    found = {}
    if not os.path.isdir(path):
        try:
            info = os.stat(path)
            found[""] = (info.st_mtime_ns, info.st_size, info.st_ino)
        except OSError:
            pass
        return found
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            whole = os.path.join(folder, name)
            try:
                info = os.lstat(whole)
            except OSError:
                continue
            isdir = (info.st_mode & 0o170000) == 0o040000
            state = (0, 0) if isdir else (info.st_mtime_ns, info.st_size)
            found[os.path.relpath(whole, path)] = state + (info.st_ino,)
            if len(found) > limit:
                sys.exit("%s holds more than %d files; watch a smaller directory" % (path, limit))
    return found
before = look()
print(json.dumps({"kind": "ready", "path": ""}), flush=True)
while True:
    time.sleep(every_s)
    now = look()
    for name in sorted(set(before) | set(now)):
        if before.get(name) != now.get(name):
            kind = "created" if name not in before else "deleted" if name not in now else "modified"
            print(json.dumps({"kind": kind, "path": name}), flush=True)
    before = now
"""
"""By looking again and again: inotify needs ctypes, which images may lack, and does not see other mounts' changes."""
