"""The stages of the pipeline, one thin program each: they read, call the library, write."""

from datapool.lifetime import end_with_parent

end_with_parent()  # here, before a stage imports anything that takes its time
