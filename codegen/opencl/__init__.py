"""The OpenCL backend: loop IR -> OpenCL C kernels and a host schedule.

device.py finds a device that works; kernel.py, cooperative.py, contract.py and sort.py write kernels, scalars.py, library.py, ctext.py and
ranges.py their expressions; emit.py puts a module together; host.py and hostmath.py run the schedule; program.py is the face.
Importing this folder loads neither pyopencl nor a driver.
"""
