"""What programs expect of a file system, in the shared folder given as argument.

Every line is one promise; the script ends with status 1 if any is broken.
"""
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys

broken = []


def check(what, kept):
    print(f"{'ok' if kept else 'BROKEN'}: {what}", flush=True)
    if not kept:
        broken.append(what)


def refused(act, *errors):
    try:
        act()
    except OSError as e:
        return e.errno in errors
    return False


def write(name, text=""):
    with open(name, "w") as f:
        f.write(text)


def read(name):
    with open(name) as f:
        return f.read()


def in_child(act, user=0):
    """Exit status of a child that acts as a user: 13 if that is not permitted."""
    child = os.fork()
    if child == 0:
        if user:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        try:
            act()
        except PermissionError:
            os._exit(13)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mappings():
    write("m", "a" * 8192)
    with open("m", "r+b", buffering=0) as f:
        shared = mmap.mmap(f.fileno(), 8192)
        shared[0:5] = b"hello"
        check("a shared mapping's write is read", read("m")[:5] == "hello")
        os.pwrite(f.fileno(), b"world", 4096)
        check("a write is seen through a mapping", shared[4096:4101] == b"world")
        private = mmap.mmap(f.fileno(), 8192, flags=mmap.MAP_PRIVATE)
        private[0:3] = b"xxx"
        check("a private mapping stays private", private[0:5] == b"xxxlo" and read("m")[:5] == "hello")

        def other():
            with open("m", "r+b") as g:
                mmap.mmap(g.fileno(), 8192)[100:104] = b"kid!"

        in_child(other)
        check("processes share a mapping", shared[100:104] == b"kid!")
        shared.flush()
    shutil.copy("/bin/true", "t")
    check("a program is run from it", subprocess.run(["./t"]).returncode == 0)
    direct = os.open("direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    page[:] = b"q" * 4096
    check("O_DIRECT", os.write(direct, page) == 4096 and read("direct") == "q" * 4096)


def attributes():
    os.setxattr("m", "user.a", b"1")
    check("attributes are kept", os.getxattr("m", "user.a") == b"1" and os.listxattr("m") == ["user.a"])
    os.removexattr("m", "user.a")
    check("attributes are removed", os.listxattr("m") == [])
    trusted = refused(lambda: os.setxattr("m", "trusted.a", b"1"), errno.EOPNOTSUPP, errno.EPERM)
    check("no attributes but the users'", trusted)
    os.utime("m", ns=(1_000_000_123, 2_000_000_456))
    s = os.stat("m")
    check("times to the nanosecond", (s.st_atime_ns, s.st_mtime_ns) == (1_000_000_123, 2_000_000_456))


def permissions():
    os.chmod("m", 0o600)
    os.chown("m", 1234, 4321)
    s = os.stat("m")
    check("owners", (s.st_uid, s.st_gid) == (1234, 4321))
    check("another user may not read", in_child(lambda: open("m"), 999) == 13)
    os.mkdir("pub")
    os.chmod("pub", 0o1777)
    check("another user makes a file", in_child(lambda: write("pub/u"), 999) == 0)
    s = os.stat("pub/u")
    check("and owns it", (s.st_uid, s.st_gid) == (999, 999))
    check("the sticky bit", in_child(lambda: os.unlink("pub/u"), 1000) == 13)
    os.mkdir("group")
    os.chown("group", 0, 777)
    os.chmod("group", 0o2775)
    write("group/f")
    os.mkdir("group/d")
    inherited = os.stat("group/f").st_gid == 777 and os.stat("group/d").st_mode & stat.S_ISGID
    check("a folder passes its group on", inherited)
    write("su", "x")
    os.chmod("su", 0o4777)

    def append():
        with open("su", "a") as f:
            f.write("y")

    in_child(append, 999)
    check("set-user-ID goes when another writes", not os.stat("su").st_mode & stat.S_ISUID)


def open_files():
    with open("log", "ab", buffering=0) as f:
        f.write(b"a")
        with open("log", "ab") as g:
            g.write(b"b")
        f.write(b"c")
        check("append", read("log") == "abc")
    fd = os.open("gone", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"abcd")
    os.unlink("gone")
    os.ftruncate(fd, 2)
    os.fchmod(fd, 0o640)
    s = os.fstat(fd)
    whole = os.pread(fd, 9, 0) == b"ab" and s.st_nlink == 0 and stat.S_IMODE(s.st_mode) == 0o640
    check("an open file outlives its name", whole)
    sparse = os.open("sparse", os.O_CREAT | os.O_RDWR)
    os.pwrite(sparse, b"x", 1 << 24)
    check("holes are found", os.lseek(sparse, 0, os.SEEK_DATA) == 1 << 24)
    one, two = open("m", "r+b"), open("m", "r+b")
    fcntl.flock(one, fcntl.LOCK_EX)
    check("locks", refused(lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB), errno.EWOULDBLOCK))


def names():
    write("l1", "z")
    os.link("l1", "l2")
    same = os.stat("l2").st_ino == os.stat("l1").st_ino and os.stat("l1").st_nlink == 2
    check("hard links", same)
    os.rename("l1", "pub/l1")
    check("a rename", os.path.exists("pub/l1") and not os.path.exists("l1"))
    os.makedirs("d1/d2")
    check("no folder moves into itself", refused(lambda: os.rename("d1", "d1/d2/x"), errno.EINVAL))
    write("n" * 255)
    check("names of 255 bytes", "n" * 255 in os.listdir("."))
    check("none of 256", refused(lambda: write("n" * 256), errno.ENAMETOOLONG))
    write(b"\xff\xfe")
    check("names of any bytes", b"\xff\xfe" in os.listdir(b"."))
    os.mkfifo("fifo")
    child = os.fork()
    if child == 0:
        write("fifo", "pipe")
        os._exit(0)
    check("a pipe carries", read("fifo") == "pipe")
    os.waitpid(child, 0)
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.listen()
    client.connect("socket")
    server.accept()[0].sendall(b"hi")
    check("a socket carries", client.recv(2) == b"hi")


def no_escape():
    """Links lead where the guest's own files are; devices of the host are not to be had."""
    os.symlink("/etc/shadow", "absolute")
    os.symlink("/proc/self/root/etc/hostname", "magic")
    os.symlink("../" * 40 + "etc/hostname", "up")
    check("an absolute link is the guest's", read("absolute") == read("/etc/shadow"))
    check("a link through proc is the guest's", read("magic") == read("/etc/hostname"))
    check("a link upwards is the guest's", read("up") == read("/etc/hostname"))
    check("above the share is the guest", os.listdir("/mnt/..") == os.listdir("/"))
    busy = errno.EBUSY, errno.EXDEV
    check("the share itself is not renamed", refused(lambda: os.rename("/mnt", "/mnt2"), *busy))
    for kind in stat.S_IFBLK, stat.S_IFCHR:
        check("no devices", refused(lambda: os.mknod("dev", 0o600 | kind, os.makedev(1, 3)), errno.EPERM))


os.chdir(sys.argv[1])
for part in mappings, attributes, permissions, open_files, names, no_escape:
    part()
sys.exit(bool(broken))
