"""The stages of the pipeline, one thin program each: they read, call the library, write."""

import sys

from datapool.lifetime import begin_quickly, install_signal_handlers

# While Python locates the module of `python -m stages.rank`, argv[0] is "-m". Only then are handlers installed here,
# before the imports of the stage, which take half a second. In any other process, importing a stage changes nothing of it.
if sys.argv[:1] == ["-m"]:
    install_signal_handlers()
    begin_quickly()
