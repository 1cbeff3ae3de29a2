#!/usr/bin/env python3
"""End-to-end check of nullcuda through pycuda (and cuda.bindings where it is installed).

    LD_LIBRARY_PATH=lib venv/bin/python smoke_pycuda.py

Each case runs in its own process with NULLCUDA_REPORT set; the parent compares the report with
what the case was meant to do. Exit status 0: all as expected.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

CASES = {}


def case(**expected):
    """expected: error kind -> count, as the report must have them (exactly)"""

    def add(f):
        CASES[f.__name__] = f, expected
        return f

    return add


def context():
    import pycuda.driver as cuda

    cuda.init()
    return cuda, cuda.Device(0).make_context()


def raises(f, text):
    try:
        f()
    except Exception as e:
        assert text in str(e), e
    else:
        raise AssertionError(f"no error; expected {text!r}")


# ---- things that must work, with an empty error list


@case()
def device():
    import pycuda.driver as cuda

    cuda.init()
    assert cuda.Device.count() == 1
    d = cuda.Device(0)
    assert d.name() == "nullcuda (no GPU)" and d.total_memory() == 8 << 30 and d.compute_capability() == (8, 6)
    a = d.get_attributes()
    assert a[cuda.device_attribute.WARP_SIZE] == 32 and a[cuda.device_attribute.UNIFIED_ADDRESSING] == 1
    assert d.get_attribute(cuda.device_attribute.MAX_THREADS_PER_BLOCK) == 1024
    assert cuda.get_driver_version() == 13000
    raises(lambda: cuda.Device(0).make_context().detach() or cuda.Context.get_device(), "INVALID_CONTEXT")


@case()
def round_trip():
    cuda, ctx = context()
    x = np.random.default_rng(0).standard_normal((3, 64, 64)).astype(np.float32)
    free0, total = cuda.mem_get_info()
    d = cuda.mem_alloc(x.nbytes)
    assert cuda.mem_get_info() == (free0 - x.nbytes, total)
    y = np.empty_like(x)
    cuda.memcpy_htod(d, x)
    cuda.memcpy_dtoh(y, d)
    assert np.array_equal(x, y)
    s = cuda.Stream()
    src, dst = cuda.pagelocked_empty(x.shape, x.dtype), cuda.pagelocked_zeros(x.shape, x.dtype)
    src[:] = x * 2
    cuda.memcpy_htod_async(d, src, s)
    e = cuda.mem_alloc(x.nbytes)
    cuda.memcpy_dtod_async(e, d, x.nbytes, s)
    cuda.memcpy_dtoh_async(dst, e, s)
    s.synchronize()
    assert s.is_done() and np.array_equal(dst, x * 2)
    cuda.memset_d32(int(d), 0x3F800000, x.size)  # 1.0f
    cuda.memset_d8_async(int(e), 0, x.nbytes, s)
    cuda.memcpy_dtoh(y, d)
    assert (y == 1).all()
    cuda.memcpy_dtoh(y, e)
    assert not y.any()
    d.free()
    e.free()
    assert cuda.mem_get_info()[0] == free0
    del src, dst, s
    ctx.pop()


@case()
def pitched():
    cuda, ctx = context()
    x = np.arange(60, dtype=np.float32).reshape(6, 10)
    d, pitch = cuda.mem_alloc_pitch(40, 6, 4)
    assert pitch == 512
    up, down = cuda.Memcpy2D(), cuda.Memcpy2D()
    up.set_src_host(x)
    up.set_dst_device(d)
    up.dst_pitch, up.src_pitch, up.width_in_bytes, up.height = pitch, 40, 40, 6
    up(aligned=True)
    y = np.zeros_like(x)
    down.set_src_device(d)
    down.set_dst_host(y)
    down.src_pitch, down.dst_pitch, down.width_in_bytes, down.height = pitch, 40, 40, 6
    down(aligned=True)
    assert np.array_equal(x, y)
    d.free()
    ctx.pop()


@case()
def mapped_managed_registered():
    cuda, ctx = context()
    h = cuda.pagelocked_empty(1000, np.int32, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
    p = h.base.get_device_pointer()
    h[:] = np.arange(1000)
    d = cuda.mem_alloc(h.nbytes)
    cuda.memcpy_dtod(d, p, h.nbytes)  # the device sees the host's writes
    back = np.empty(1000, np.int32)
    cuda.memcpy_dtoh(back, d)
    assert np.array_equal(back, np.arange(1000))
    cuda.memset_d32(p, 7, 1000)  # the host sees the device's writes
    assert (h == 7).all()
    m = cuda.managed_empty(1000, np.int32, mem_flags=cuda.mem_attach_flags.GLOBAL)
    m[:] = 5
    cuda.memcpy_dtod(d, m.base.get_device_pointer(), m.nbytes)
    cuda.memcpy_dtoh(back, d)
    assert (back == 5).all()
    # pycuda's own register_host_memory fails (inducer/pycuda#459), so call the driver
    a, cu = cuda.aligned_zeros(4096, np.uint8), driver()
    assert cu.cuMemHostRegister_v2(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(4096), 2) == 0
    p = ctypes.c_uint64()
    assert cu.cuMemHostGetDevicePointer_v2(ctypes.byref(p), ctypes.c_void_p(a.ctypes.data), 0) == 0
    cuda.memset_d8(p.value, 9, 4096)
    assert (a == 9).all()
    assert cu.cuMemHostUnregister(ctypes.c_void_p(a.ctypes.data)) == 0
    d.free()
    del h, m
    ctx.pop()


@case()
def events():
    cuda, ctx = context()
    s, a, b = cuda.Stream(), cuda.Event(), cuda.Event(cuda.event_flags.BLOCKING_SYNC)
    began_s = time.monotonic()
    a.record(s)
    time.sleep(0.05)
    b.record(s)
    most_ms = 1e3 * (time.monotonic() - began_s) + 1
    b.synchronize()
    s.wait_for_event(a)
    assert a.query() and b.query()
    assert 45 < a.time_till(b) <= most_ms and abs(a.time_till(b) - b.time_since(a)) < 1e-6, a.time_till(b)
    del s, a, b
    ctx.pop()


@case()
def contexts():
    cuda, one = context()
    two = cuda.Device(0).make_context()
    assert cuda.Context.get_current() == two
    two.pop()
    assert cuda.Context.get_current() == one
    two.push()
    d = cuda.mem_alloc(64)
    two.pop()
    d.free()  # pycuda makes the right context current for this
    two.detach()
    one.synchronize()
    one.pop()
    one.detach()
    p = cuda.Device(0).retain_primary_context()
    p.push()
    cuda.mem_alloc(64).free()
    p.pop()
    p.detach()


@case()
def thread():
    import threading

    cuda, ctx = context()
    d = cuda.mem_alloc(16)
    ctx.pop()
    ok = []

    def work():
        ctx.push()
        cuda.memcpy_htod(d, np.arange(4, dtype=np.int32))
        ctx.pop()
        ok.append(1)

    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert ok
    ctx.push()
    d.free()
    ctx.pop()


@case()
def launch():
    cuda, ctx = context()
    m = cuda.module_from_buffer(b"// any image is accepted\0")
    f = m.get_function("saxpy")
    d = cuda.mem_alloc(1024)
    for _ in range(3):
        f(d, np.int32(4), block=(128, 1, 1), grid=(2, 1))
    f.prepare("Pi")
    f.prepared_async_call((2, 1), (128, 1, 1), cuda.Stream(), d, 4)
    d.free()
    del f, m
    ctx.pop()


@case()
def pools():
    cuda, ctx = context()
    import pycuda.tools

    pool, host = pycuda.tools.DeviceMemoryPool(), pycuda.tools.PageLockedMemoryPool()
    for _ in range(3):
        d, h = pool.allocate(1000), host.allocate((250,), np.int32)
        h[:] = 3
        cuda.memcpy_htod_async(d, h)
        d.free()
        del h
    pool.stop_holding()
    host.stop_holding()
    ctx.pop()


@case()
def autoinit():
    import pycuda.autoinit  # noqa: F401
    import pycuda.driver as cuda

    cuda.mem_alloc(10).free()


@case(primary_detach=1)
def autoprimaryctx():  # pycuda drops its primary context with cuCtxDetach unless .detach() was called
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda

    cuda.mem_alloc(10).free()


@case()
def out_of_memory():
    cuda, ctx = context()
    try:
        cuda.mem_alloc(9 << 30)
    except cuda.MemoryError:
        pass
    else:
        raise AssertionError("9 GiB of 8")
    ctx.pop()


# ---- misuse that must be reported


def driver():
    return ctypes.CDLL("libcuda.so.1")


@case(leak=1)
def leak():
    _, ctx = context()
    driver().cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(100))
    ctx.pop()


@case(leak=1)
def leak_in_context():
    cuda, ctx = context()
    d = cuda.mem_alloc(100)
    ctx.detach()
    assert d


@case(leak=2, handle_leak=2)
def leak_at_exit():
    from cuda.bindings import driver as cu

    ck(cu.cuInit(0))
    ck(cu.cuCtxSetCurrent(ck(cu.cuDevicePrimaryCtxRetain(0))))
    ck(cu.cuMemAlloc(100))
    ck(cu.cuMemHostAlloc(100, 0))
    ck(cu.cuStreamCreate(0))
    ck(cu.cuEventCreate(0))


@case(double_free=1)
def double_free():
    cuda, ctx = context()
    d = cuda.mem_alloc(100)
    driver().cuMemFree_v2(ctypes.c_uint64(int(d)))
    d.free()  # the driver says no; pycuda prints a warning
    ctx.pop()


@case(out_of_bounds=4)
def out_of_bounds():
    cuda, ctx = context()
    d = cuda.mem_alloc(100)
    raises(lambda: cuda.memcpy_htod(d, np.zeros(101, np.uint8)), "INVALID")
    raises(lambda: cuda.memcpy_dtoh(np.zeros(101, np.uint8), d), "INVALID")
    raises(lambda: cuda.memcpy_dtoh(np.zeros(1, np.uint8), int(d) + 100), "INVALID")
    raises(lambda: cuda.memset_d32(int(d), 0, 26), "INVALID")
    d.free()
    ctx.pop()


@case(use_after_free=2)
def use_after_free():
    cuda, ctx = context()
    d = cuda.mem_alloc(100)
    p = int(d)
    d.free()
    raises(lambda: cuda.memcpy_dtoh(np.zeros(10, np.uint8), p), "INVALID")
    raises(lambda: cuda.memset_d8(p + 50, 0, 1), "INVALID")
    ctx.pop()


@case(invalid_free=1, invalid_pointer=1, wrong_memory=1, null_pointer=1)
def bad_pointers():
    cuda, ctx = context()
    d = cuda.mem_alloc(100)
    cu = driver()
    assert cu.cuMemFree_v2(ctypes.c_uint64(int(d) + 1)) == 1
    x = np.zeros(4, np.uint8)
    raises(lambda: cuda.memcpy_htod(int(x.ctypes.data), x), "INVALID")
    assert cu.cuMemcpyHtoD_v2(ctypes.c_uint64(int(d)), ctypes.c_void_p(int(d)), ctypes.c_size_t(4)) == 1
    raises(lambda: cuda.memset_d8(0, 0, 1), "INVALID")
    d.free()
    ctx.pop()


@case(no_context=1, not_initialized=1)
def no_context():
    import pycuda.driver as cuda

    raises(lambda: cuda.Device.count(), "NOT_INITIALIZED")
    cuda.init()
    raises(lambda: cuda.mem_alloc(100), "INVALID_CONTEXT")


@case(use_after_destroy=4)
def destroyed_handles():
    cuda, ctx = context()
    cu, s, e = driver(), cuda.Stream(), cuda.Event()
    n = np.zeros(4, np.uint8)
    d = cuda.mem_alloc(4)
    cu.cuStreamDestroy_v2(ctypes.c_void_p(s.handle))
    raises(partial(cuda.memcpy_htod_async, d, n, s), "INVALID_HANDLE")
    raises(partial(e.record, s), "INVALID_HANDLE")
    raises(s.synchronize, "INVALID_HANDLE")
    d.free()
    del s, e  # the stream's own clean-up is the fourth
    ctx.pop()


@case(use_after_fork=1)
def fork():
    cuda, ctx = context()
    pid = os.fork()
    if not pid:
        try:
            cuda.mem_alloc(10)
        except cuda.LogicError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    ctx.pop()


# ---- cuda.bindings: streams in capture, graphs, entry points


def ck(result):
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) == 2 else result[1:]


@case(capture=2, use_after_free=1)
def graphs():
    from cuda.bindings import driver as cu

    ck(cu.cuInit(0))
    c = ck(cu.cuDevicePrimaryCtxRetain(0))
    ck(cu.cuCtxSetCurrent(c))
    s = ck(cu.cuStreamCreate(cu.CUstream_flags.CU_STREAM_NON_BLOCKING))
    d = ck(cu.cuMemAlloc(256))
    h = ck(cu.cuMemHostAlloc(256, 0))
    ctypes.memset(h, 1, 256)
    ck(cu.cuStreamBeginCapture(s, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    ck(cu.cuMemsetD8Async(d, 3, 256, s))
    ck(cu.cuMemcpyDtoHAsync(h, d, 256, s))
    assert ctypes.string_at(h, 256) == b"\1" * 256  # captured, not run
    g = ck(cu.cuStreamEndCapture(s))
    x = ck(cu.cuGraphInstantiate(g, 0))
    ck(cu.cuGraphLaunch(x, s))
    ck(cu.cuStreamSynchronize(s))
    assert ctypes.string_at(h, 256) == b"\3" * 256  # run
    ck(cu.cuStreamBeginCapture(s, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    assert int(cu.cuMemAlloc(16)[0]) == 900 and int(cu.cuStreamSynchronize(s)[0]) == 900
    assert int(cu.cuStreamEndCapture(s)[0]) == 901  # invalidated
    ck(cu.cuMemFree(d))
    assert int(cu.cuGraphLaunch(x, s)[0]) == 1  # replay into freed memory
    ck(cu.cuGraphExecDestroy(x))
    ck(cu.cuGraphDestroy(g))
    ck(cu.cuMemFreeHost(h))
    ck(cu.cuStreamDestroy(s))
    ck(cu.cuDevicePrimaryCtxRelease(0))


@case()
def entry_points():
    from cuda.bindings import driver as cu

    status = cu.CUdriverProcAddressQueryResult
    _, p, st = cu.cuGetProcAddress(b"cuMemAlloc", 12000, 0)
    assert p and st == status.CU_GET_PROC_ADDRESS_SUCCESS
    assert cu.cuGetProcAddress(b"cuMemAlloc", 2000, 0)[1] not in (0, p)  # the 32-bit one of CUDA 2
    assert cu.cuGetProcAddress(b"cuGetProcAddress", 1000, 0)[2] == status.CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
    assert cu.cuGetProcAddress(b"cuNothing", 12000, 0)[2] == status.CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND


def wide(n):
    return ctypes.c_void_p(int(n))


@case()
def lazy():
    cuda, ctx = context()
    driver().nullcuda_lazy(1)
    one, two = cuda.Stream(1), cuda.Stream(1)
    host, back = cuda.pagelocked_zeros(4, np.uint8), cuda.pagelocked_zeros(4, np.uint8)
    d, e, done = cuda.mem_alloc(4), cuda.mem_alloc(4), cuda.Event()
    host[:] = 1
    cuda.memcpy_htod_async(d, host, one)
    host[:] = 2  # too early: the copy is still to come
    cuda.memcpy_dtoh_async(back, d, one)
    assert not back.any()
    one.synchronize()
    assert (back == 2).all()
    host[:] = 3
    cuda.memcpy_htod_async(d, host, one)
    done.record(one)
    host[:] = 4
    cuda.memcpy_htod_async(e, host, one)  # behind the event: stays queued
    two.wait_for_event(done)
    cuda.memcpy_dtoh_async(back, d, two)
    raises(partial(done.time_since, done), "NOT_READY")
    two.synchronize()
    assert (back == 4).all(), "as late as it may, the copy took what was there by then"
    cuda.memcpy_dtoh_async(back, e, two)  # nothing makes it wait for the other stream
    two.synchronize()
    assert not back.any()
    d.free()  # waits for everything
    cuda.memcpy_dtoh(back, e)
    assert (back == 4).all()
    e.free()
    driver().nullcuda_lazy(0)
    del one, two, done, host, back
    ctx.pop()


@case()
def refusals():
    cuda, ctx = context()
    cu = driver()
    cu.nullcuda_refuse.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
    cu.nullcuda_refuse(b"cuMemAlloc_v2", 1, 1, 1)
    cuda.mem_alloc(4).free()
    raises(lambda: cuda.mem_alloc(4), "INVALID_VALUE")
    cuda.mem_alloc(4).free()
    stream = cuda.Stream()
    cu.nullcuda_refuse(b"*", 700, 0, 1000)
    raises(stream.synchronize, "ILLEGAL_ADDRESS")
    raises(stream.synchronize, "ILLEGAL_ADDRESS")
    cu.nullcuda_refuse(b"", 0, 0, 0)
    stream.synchronize()
    d = cuda.mem_alloc(4)
    cu.nullcuda_refuse(b"cuMemFree_v2", 700, 0, 1)
    d.free()  # given back although it says otherwise
    del stream
    ctx.pop()


@case(capture=1, handle_leak=2, use_after_destroy=2)
def graphs_misused():
    cuda, ctx = context()
    cu = driver()
    one, two, three = cuda.Stream(1), cuda.Stream(1), cuda.Stream(1)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    assert cu.cuStreamBeginCapture_v2(wide(one.handle), 1) == 0
    assert cu.cuStreamEndCapture(wide(one.handle), ctypes.byref(graph)) == 0
    assert cu.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0
    assert cu.cuGraphLaunch(executable, wide(one.handle)) == 0
    assert cu.cuGraphExecDestroy(executable) == 0
    assert cu.cuGraphLaunch(executable, wide(one.handle)) == 400  # destroyed
    assert cu.cuGraphExecDestroy(executable) == 400
    assert cu.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0  # kept, so is
    assert cu.cuStreamBeginCapture_v2(wide(two.handle), 1) == 0  # the graph, and this capture is never ended
    del one, two, three
    ctx.pop()


def check(name):
    _, expected = CASES[name]
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "report.json")
        env = dict(os.environ, NULLCUDA_REPORT=path, NULLCUDA_STRICT="exit", NULLCUDA_QUIET="1")
        p = subprocess.run([sys.executable, __file__, name], env=env, capture_output=True, text=True)
        if "SKIP" in p.stdout:
            return "skipped: " + p.stdout.strip(), None
        if not os.path.exists(path):
            return f"no report; status {p.returncode}\n{p.stderr}", None
        report = json.loads(Path(path).read_text())
    status = 86 if expected and name != "fork" else 0
    want = {} if name == "fork" else expected  # the child's error is the child's
    if p.returncode != status or report["errors_by_kind"] != want:
        return (
            f"status {p.returncode} (expected {status}), errors {report['errors_by_kind']} (expected {want})\n"
            f"{report['error_list']}\n{p.stderr}",
            report,
        )
    if name == "launch" and report["launches_by_kernel"] != {"saxpy": 4}:
        return f"launches {report['launches_by_kernel']}", report
    return None, report


if __name__ == "__main__":
    if len(sys.argv) > 1:
        try:
            CASES[sys.argv[1]][0]()
        except ImportError as e:
            print("SKIP", e)
        sys.exit()
    failed = 0
    for name, (_, expected) in CASES.items():
        problem, report = check(name)
        failed += problem is not None and not problem.startswith("skipped")
        print(
            f"{'ok  ' if problem is None else 'SKIP' if problem.startswith('skipped') else 'FAIL'} {name:28}",
            problem
            or (
                ", ".join(f"{k} x{v}" for k, v in expected.items())
                if expected
                else f"{report['calls']} calls, no errors"
            ),
        )
    sys.exit(1 if failed else 0)
