"""From project files to a released bundle, as stages that are done once."""
