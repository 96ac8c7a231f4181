from setuptools import setup
setup(
    packages=["fastnets", "fastnets.ops", "fastnets.layers", "fastnets.models", "fastnets.cli", "fastnets.kernels"],
    package_dir={"fastnets": "fastnets", "fastnets.kernels": "kernels"},
    version="0.1.0",
)
