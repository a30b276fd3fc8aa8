"""`automagic doctor`: one page on an environment, for bug reports. Nothing is written or sent."""
