"""The command `biomedclip` with FSDP on the CPU."""

import sys

from helpers.sharded_training import let_accelerate_shard_on_the_cpu

from biomedclip.run_scripts.main import main


let_accelerate_shard_on_the_cpu()
sys.exit(main())
