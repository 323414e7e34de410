"""Exit 0 where an OpenCL device builds and runs a kernel; a device that is only listed may not."""
import sys

import numpy as np

try:
    import pyopencl as cl
    for platform in cl.get_platforms():
        for device in platform.get_devices():
            try:
                context = cl.Context([device])
                queue = cl.CommandQueue(context)
                buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE, 16)
                program = cl.Program(context, "kernel void f(global float* a) { a[get_global_id(0)] = 2.0f; }").build()
                program.f(queue, (4,), None, buffer)
                out = np.zeros(4, np.float32)
                cl.enqueue_copy(queue, out, buffer)
                if out.tolist() == [2.0] * 4:
                    print(f"OpenCL: {device.name.strip()} ({platform.name})")
                    sys.exit(0)
            except cl.Error as e:
                print(f"OpenCL: {device.name.strip()} is listed but does not work: {str(e).splitlines()[0]}", file=sys.stderr)
except Exception as e:
    print(f"OpenCL: {e}", file=sys.stderr)
sys.exit(1)
