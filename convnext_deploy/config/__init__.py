"""The settings of stages, trainings and recipes as frozen records, and the TOML reader."""
