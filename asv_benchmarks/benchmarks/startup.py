"""What a new process pays: the import, and the first call with and without compiled kernels in the cache.

asv runs the statements in new interpreters, and does not count the second of a pair.
"""

SOLVE = "ot_numba.sinkhorn(numpy.arange(2500.0).reshape(50, 50) % 7, reg=1.0)"


class Startup:
    number = 1
    rounds = 1
    repeat = (1, 5, 20.0)
    warmup_time = 0

    def timeraw_import(self):
        return "import numpy, ot_numba"

    def timeraw_first_call_warm_cache(self):
        # the same call in a process before this one, so that the cache is warm
        prepare = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import numpy, ot_numba; {SOLVE}'])"
        return f"import numpy, ot_numba; {SOLVE}", prepare

    def timeraw_first_call_cold_cache(self):
        prepare = """
            import os, tempfile
            folder = tempfile.TemporaryDirectory()
            os.environ["OT_NUMBA_CACHE_DIR"] = folder.name
        """
        return f"import numpy, ot_numba; {SOLVE}", prepare
