"""
Give all tests the same environment, independent of the user and the machine.

Settings of a user, a cluster or a launcher must not affect the tests: the width and colors of the terminal, proxies,
accounts, and the rank of this process. Importing this module removes them.
"""

import os


PREFIXES = ("ACCELERATE_", "FSDP_", "GLIBC_", "MALLOC_", "RAY_", "SLURM_", "TORCHELASTIC_", "WANDB_")
NAMES = {
    *("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("BIOMEDCLIP_DEBUG", "FORCE_COLOR", "HF_ENDPOINT", "HF_TOKEN", "NO_COLOR", "TTY_COMPATIBLE"),
    *("GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"),
}

for name in list(os.environ):
    if name.startswith(PREFIXES) or name in NAMES:
        del os.environ[name]
# Servers of the tests are on loopback.
os.environ |= {"COLUMNS": "80", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
# Two test processes share the cores; threads of each that wait for one another would make both many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
