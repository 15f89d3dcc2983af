"""Databases around the host tables: Redis and RocksDB, how they fail and heal, and updates."""
