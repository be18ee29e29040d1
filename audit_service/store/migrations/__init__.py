"""How tables came to be what they are: a folder a store, a file a version.

A version that has been released never changes; the next one is ``v0002_....py`` with ``revision = "0002"`` and
``down_revision = "0001"``, an entry in ``StoreSchema.versions``, and the new shape in ``tables.py``. All versions that
a state lacks are applied in one transaction when it is opened, on SQLite as on PostgreSQL: a migration that fails
leaves what was there. There is no way back; an older program refuses a newer state.
"""
