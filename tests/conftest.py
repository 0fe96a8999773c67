"""What the whole suite needs of pytest; fixtures with servers come from hybridkit's own plugin."""

pytest_plugins = ["pytester"]
