"""Programs that mean harm, each bounded in count and time. What gets through says THROUGH on its standard output.

`ATTACKS` are programs; `FORGERIES` are modules that want to be taken for Fibonacci's f without being able to compute
it: the tests ask f(20) == 6765 and abs(f(3) - 2) < 1e-6.
"""

# ruff: noqa: E501

from __future__ import annotations

_C = "import ctypes, os, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _tries(body: str, head: str = "import os, sys, socket, signal, threading\n") -> str:
    """A program that says THROUGH unless its body raises an OSError (or returns None)."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return (
        f"{head}def attack():\n{lines}\n"
        "try:\n    result = attack()\nexcept (OSError, MemoryError, RuntimeError) as e:\n    result = None\n"
        "print('THROUGH' if result else 'held')\n"
    )


ATTACKS: dict[str, str] = {
    "endless loop": "while True: pass",
    "endless loop in C": "sum(range(10**12))",
    "ignores signals": "import signal\nfor s in (15, 24, 14, 2): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "sleep": "import time\ntime.sleep(3600)",
    "waits for a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()",
    "leaves at exit": "import atexit, time\natexit.register(time.sleep, 3600)",
    "floods standard output": "while True: print('x' * 65536)",
    "floods standard error": "import sys, time\nend = time.time() + 0.3\nwhile time.time() < end: sys.stderr.write('x' * 65536)",
    "memory, at once": "x = bytearray(4 << 30)\nx[::4096] = b'x' * len(x[::4096])\nprint('THROUGH')",
    "memory, bit by bit": "x = []\nfor _ in range(4096): x.append(bytearray(b'x') * (1 << 20))\nprint('THROUGH')",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)",
    "deep recursion in C": "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "kills itself": "import os\nos.kill(os.getpid(), 9)",
    "fork": _tries("for _ in range(50):\n    if os.fork() == 0:\n        os._exit(0)\nreturn True"),
    "a grandchild that stays": _tries(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time\n        time.sleep(5)\n"
        "    os._exit(0)\nreturn True"
    ),
    "vfork and clone": _C
    + _tries(
        "for number in (57, 58, 220, 435):\n    pid = libc.syscall(number, 17, 0, 0, 0, 0) if number != 220 else -1\n"
        "    if pid == 0: os._exit(0)\n    if pid > 0: return True",
        "",
    ),
    "starts a shell": _tries("import subprocess\nreturn subprocess.run(['/bin/sh', '-c', 'exit 0']).returncode == 0"),
    "becomes a shell": _tries("os.execv('/bin/sh', ['sh', '-c', 'echo THROUGH'])"),
    "many threads": (
        "import threading, time\nthreading.stack_size(65536)\nmade = []\n"
        "try:\n    for _ in range(2000): made.append(threading.Thread(target=time.sleep, args=(60,), daemon=True)); made[-1].start()\n"
        "except RuntimeError: pass"
    ),
    "TCP": _tries("return socket.create_connection(('127.0.0.1', 22), 0.3)"),
    "TCP, listening": _tries("s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nreturn True"),
    "UDP": _tries("return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))"),
    "unix socket": _tries("s = socket.socket(socket.AF_UNIX)\ns.bind('\\0stockpot-hostile')\nreturn True"),
    "netlink socket": _tries("return socket.socket(16, socket.SOCK_RAW, 0)"),
    "io_uring": _C + _tries("return libc.syscall(425, 8, ctypes.create_string_buffer(512)) >= 0", ""),
    "bpf, perf, keys, userfaultfd": _C
    + _tries(
        "return any(libc.syscall(n, 0, ctypes.create_string_buffer(256), 128, 0, 0) >= 0 for n in (321, 298, 248, 250, 323))",
        "",
    ),
    "reads /etc/passwd": _tries("return open('/etc/passwd').read()"),
    "reads home": _tries("return os.listdir(os.path.expanduser('~root')) or os.listdir('/home') or True"),
    "reads /proc": _tries("return open('/proc/self/maps').read() or open('/proc/1/environ').read()"),
    "lists the root": _tries("return os.listdir('/')"),
    "open by handle": _C + _tries("return libc.syscall(304, -100, ctypes.create_string_buffer(128), 0) >= 0", ""),
    "writes outside": _tries(
        "for path in ('/tmp/x', '/dev/shm/x', '/var/tmp/x', 'x', '/usr/x'):\n    try: open(path, 'w').write('x')\n"
        "    except OSError: continue\n    return True"
    ),
    "empties a library": _tries("return os.open(os.__file__, os.O_RDONLY | os.O_TRUNC) >= 0"),
    "fills a disk": _tries(
        "import tempfile\nfiles = []\nfor _ in range(8):\n    files.append(tempfile.TemporaryFile())\n"
        "    files[-1].write(b'x' * (1 << 20))\n    files[-1].flush()\nreturn True"
    ),
    "fills memory files": _tries("f = os.memfd_create('x')\nreturn os.write(f, b'x' * (1 << 20))"),
    "writes to its input": _tries("return os.write(0, b'x')"),
    "makes, links, renames": _tries(
        "for act in (lambda: os.mkdir('/tmp/d'), lambda: os.symlink('/', '/tmp/l'), lambda: os.link('/dev/null', '/tmp/n'),\n"
        "            lambda: os.rename('/tmp', '/temp'), lambda: os.mkfifo('/tmp/f'), lambda: os.chmod('/tmp', 0o777)):\n"
        "    try: act()\n    except OSError: continue\n    return True"
    ),
    "secrets in the environment": "import os\nprint('THROUGH' if any('SECRET' in k + v for k, v in os.environ.items()) else 'held')",
    "kills its server": _tries("os.kill(os.getppid(), 9)\nreturn True"),
    "kills everyone": _tries("os.kill(-1, 9)\nreturn True"),
    "kills its group": _tries("os.killpg(0, 9)\nreturn True"),
    "stops its server": _tries("os.kill(os.getppid(), signal.SIGSTOP)\nreturn True"),
    "queues a signal": _C
    + _tries("return libc.syscall(129, os.getppid(), 9, ctypes.create_string_buffer(128)) == 0", ""),
    "pidfd": _C + _tries("return libc.syscall(434, os.getppid(), 0) >= 0", ""),
    "traces its server": _C
    + _tries("return any(libc.ptrace(how, os.getppid(), 0, 0) == 0 for how in (16, 0x4206))", ""),
    "reads its server's memory": _C
    + _tries(
        "b = ctypes.create_string_buffer(64)\nmine = (ctypes.c_void_p * 2)(ctypes.addressof(b), 64)\n"
        "return libc.process_vm_readv(os.getppid(), mine, 1, mine, 1, 0) > 0",
        "",
    ),
    "writes its server's memory": _C
    + _tries(
        "b = ctypes.create_string_buffer(64)\nmine = (ctypes.c_void_p * 2)(ctypes.addressof(b), 64)\n"
        "return libc.process_vm_writev(os.getppid(), mine, 1, mine, 1, 0) > 0 or os.open(f'/proc/{os.getppid()}/mem', 2) >= 0",
        "",
    ),
    "a new user namespace": _C + _tries("return libc.unshare(0x10000000) == 0 or libc.unshare(0x10020000) == 0", ""),
    "mounts": _C
    + _tries("return libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 or libc.chroot(b'/tmp') == 0", ""),
    "wins back rights": _tries("os.setuid(0)\nreturn True"),
    "wins back limits": _tries(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn True"
    ).replace("(OSError,", "(OSError, ValueError,"),
    "changes its priority": _tries("os.setpriority(0, 0, -5)\nreturn True"),
    "types into a terminal": _C + _tries("return libc.ioctl(0, 0x5412, ctypes.create_string_buffer(b'x')) == 0", ""),
    "uses descriptors it was left": _tries(
        "for f in range(3, 4096):\n    if f == 3: continue\n    try: os.write(f, b'THROUGH')\n    except OSError: continue\n"
        "    return True"
    ),
    "garbage for values": "import os\nos.write(3, b'\\xff{[' * 1000 + b'\\n{\"step\": 0, \"value\": 1}\\n[[' + b'[' * 90000)",
    "floods values": "import os\nwhile True: os.write(3, b'x' * 65536)",
}

FORGERIES: dict[str, str] = {
    "exit code 0": "import os\nos._exit(0)",
    "exit code 0 when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "raises": "def f(x): raise AssertionError",
    "equals everything": (
        "class All:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    def __sub__(self, other): return 0\n    def __abs__(self): return 0\n    def __lt__(self, other): return True\n"
        "    def __hash__(self): return 0\n    def __bool__(self): return True\ndef f(x): return All()"
    ),
    "a number that equals everything": (
        "class All(int):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return self\n"
        "    def __abs__(self): return self\n    def __lt__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return All()"
    ),
    "a number beyond reach": (
        "class All(float):\n    __class__ = int\n    def __rsub__(self, other): return 0.0\n    def __eq__(self, o): return True\n"
        "def f(x): return All('nan')"
    ),
    "not a number": "def f(x): return float('nan')",
    "changes the builtins": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = Exception\nbuiltins.exec = lambda *a: None\n"
        "def f(x): return 0"
    ),
    "prints markers": (
        "import sys\ndef f(x):\n    print('passed', 'PASSED', 'OK', '{\"passed\": [true, true]}', flush=True)\n"
        "    sys.stderr.write('passed')\n    return 0"
    ),
    "writes verdicts into every pipe": (
        "import os\ndef f(x):\n    for pipe in range(5):\n        for _ in range(3):\n"
        '            try: os.write(pipe, b\'{"passed": [true, true], "errors": [null, null], "opaque": 0}\\n\')\n'
        "            except OSError: pass\n    os._exit(0)"
    ),
    "answers before it is asked": (
        "import os\nfor _ in range(8): os.write(4, b'{\"value\": true}\\n')\ndef f(x): return True"
    ),
    "answers with objects": (
        'import os\nos.write(4, b\'{"value": {"ref": ["__builtins__", 0]}}\\n{"value": {"ref": [0, "int"]}}\\n\')\n'
        "def f(x): return f"
    ),
    "frames of its callers": (
        "import sys, re\nseen = []\n"
        "def f(x):\n    frame = sys._getframe()\n    text = ''\n    while frame:\n"
        "        text += repr(frame.f_locals) + repr(frame.f_globals) + repr(frame.f_code.co_consts)\n        frame = frame.f_back\n"
        "    found = re.search(r'== ?(\\d+)', text)\n    return int(found[1]) if found and x == 20 else 2"
    ),
    "the collector": (
        "import gc, re\ndef f(x):\n    for thing in gc.get_objects():\n        try: text = repr(thing)\n"
        "        except BaseException: continue\n        if 'assert f(' in text and x == 20:\n"
        "            found = re.search(r'f\\(20\\) == (\\d+)', text)\n            return int(found[1]) if found else 0\n    return 2"
    ),
    "its own memory": (
        "import ctypes, re\n"
        "def f(x):\n    try: lines = open('/proc/self/maps').read().splitlines()\n    except OSError: return 2\n"
        "    for line in lines:\n        a, b = (int(p, 16) for p in line.split()[0].split('-'))\n"
        "        found = re.search(rb'f\\(20\\) == (\\d+)', ctypes.string_at(a, b - a))\n        if found: return int(found[1])\n"
        "    return 2"
    ),
    "its heap": (
        "import ctypes, re\nMARK = 'f(' + '20) == '\n"
        "def f(x):\n    if x != 20: return 2\n    here = id(object()) & ~0xfffff\n"
        "    for page in range(here, here + (1 << 20), 4096):\n        pass\n"
        "    data = ctypes.string_at(id(MARK) & ~0x3ffff, 1 << 18)\n"
        "    found = re.search(MARK.replace('(', r'\\(').replace(')', r'\\)').encode() + rb'(\\d{2,})', data)\n"
        "    return int(found[1]) if found else 2"
    ),
    "the source of the tests": (
        "import inspect, linecache\ndef f(x):\n    text = ''.join(''.join(v[2]) for v in linecache.cache.values() if len(v) > 2)\n"
        "    for frame in inspect.stack():\n        text += ''.join(frame.code_context or [])\n    return 6765 if '6765' in text else 2"
    ),
    "reads the next question": (
        "import os\ndef f(x):\n    if x == 20: os.write(4, b'{\"value\": 0}\\n')\n    return 2"
    ),
    "the modules of the server": (
        "import sys\ndef f(x):\n    for module in list(sys.modules.values()):\n        if '6765' in repr(vars(module)): return 6765\n"
        "    return 2"
    ),
}
