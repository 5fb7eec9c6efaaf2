"""`python -m sim.chaos`: see `run`."""

from sim.chaos.run import main

raise SystemExit(main())
