"""What every test process needs before its first test."""
import signal

from engram.compiler import pass_manager

pass_manager.EACH = True          # the verifier looks at the IR after every pass

# A shell's background job inherits an ignored Ctrl-C, and Python then installs no handler: the tests of interrupts would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
