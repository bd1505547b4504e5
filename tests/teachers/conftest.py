"""Keras takes its backend when it is first imported, in whichever test that is."""

import os

os.environ["KERAS_BACKEND"] = "torch"
