"""Start-up hook: when a training program imports its own module of optimizers, ours are registered with it.

`automagic integrate install` copies this file into the environment, beside a ``.pth`` file that calls `watch`
at the start of every Python there. So it imports nothing but ``sys``, and needs no package around it.
"""

import sys

# trainer -> its modules that are completed when they are imported
MODULES = {
    "transformers": ("transformers.training_args", "transformers.trainer"),
    "sd-scripts": ("library.train_util",),
    "musubi-tuner": (
        "musubi_tuner.training.trainer_base",
        "musubi_tuner.hv_train_network",
        "musubi_tuner.hv_train",
    ),
    "ai-toolkit": ("toolkit.optimizer",),
    "onetrainer": ("modules.util.optimizer.CAME8bit", "modules.modelSetup.BaseModelSetup"),
    "simpletuner": ("simpletuner.helpers.training.optimizer_param",),
    "llama-factory": (
        "llamafactory.v1.plugins.trainer_plugins.optimizer",
        "llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer",
        "llamafactory.v1.utils.callbacks.trainer_callback",
    ),
    "diffusion-pipe": ("pytorch_optimizer",),
}


class Watcher:
    """A finder that finds nothing itself: it lets a watched module register ours once it has run."""

    def __init__(self):
        self.modules = set()
        self.busy = set()

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders give, its loader completed; None for all but watched modules."""
        if name not in self.modules or name in self.busy:
            return None
        self.busy.add(name)
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find is not None and finder is not self else None
                if spec is not None:
                    _complete(spec.loader)
                    return spec
        finally:
            self.busy.discard(name)
        return None


def _complete(loader):
    run = getattr(loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module):
        run(module)
        try:
            from automagic_cameamp.integrations.registers import register

            register(module)
        except Exception as error:  # a program that would run without us has to run
            where = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"automagic-cameamp: not registered with {module.__name__} ({where})", file=sys.stderr)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        print(f"automagic-cameamp: {loader!r} takes no hook; nothing registered", file=sys.stderr)


def watch(*trainers):
    """Watch for the modules of these trainers; unknown names, of a newer version say, are left alone."""
    watcher = next((finder for finder in sys.meta_path if isinstance(finder, Watcher)), None)
    if watcher is None:
        watcher = Watcher()
        sys.meta_path.insert(0, watcher)
    for trainer in trainers:
        watcher.modules.update(MODULES.get(trainer, ()))
