"""The command `biomedclip` where accelerate shards a model on the CPU, which it does on accelerators alone."""

import sys

from helpers.sharded_training import let_accelerate_shard_on_the_cpu

from biomedclip.run_scripts.main import main


let_accelerate_shard_on_the_cpu()
sys.exit(main())
