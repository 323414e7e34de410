"""The front end: from `.nn` text to tensor IR.

    load(path_or_source) -> Program                      check(program): diagnostics of everything that can be checked now
    elaborate_function(program, name, args)              elaborate_grad, elaborate_derivative (grad, vjp, jvp)
    instantiate(program, layer, args) -> LayerInstance   slots(instance), elaborate_init, elaborate_call, elaborate_cache_init
    elaborate_train(program, name, overrides, load_dataset) -> TrainPlan; epoch_module(module, entry, ...): steps as a loop
    first_values(module, entry, wanted): an init function's results apart, those that begin alike by one function
    host.elaborate_expression(program, node, names)      one expression of a run block
"""
from .api import (  # noqa: F401
    OMITTED,
    Elaborated,
    Info,
    SlotInfo,
    elaborate_cache_init,
    elaborate_call,
    elaborate_derivative,
    elaborate_function,
    elaborate_grad,
    elaborate_init,
    elaborate_jvp,
    elaborate_vjp,
    elaborate_vmap,
    functions,
    instantiate,
    path_number,
    slots,
)
from .checking import check, check_layer  # noqa: F401
from .first_values import First, first_values  # noqa: F401
from .names import unknown_names  # noqa: F401
from .program import Program, load  # noqa: F401
from .train import TrainPlan, elaborate_train  # noqa: F401
from .train_epoch import Stages, epoch_module, reachable  # noqa: F401
from .values import LayerInstance  # noqa: F401
