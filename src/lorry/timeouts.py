"""Every time-out of the platform in one ordered table, in seconds, each with what breaks if it is wrong.

User-set limits (`timeout=`, `scaledown_window=`) are not here: they belong to the function.
"""

from __future__ import annotations

TICK = 0.1
"""Server: retries due, inputs over time. Longer: retries late. Shorter: an idle server burns CPU."""
SCALE_INTERVAL = 0.25
"""Server: how often growth is reconsidered while inputs wait. Shorter than the CPU measurement means noise."""
CONNECT_POLL = 0.01
"""Client: between two tries to reach a server that is starting. Longer shows in every first run."""
LOG_DRAIN = 2.0
"""Server: how long output of an ended container may still arrive. Too short cuts off last lines."""
KILL_GRACE = 5.0
"""Between asking user code to stop and SIGKILL. Too short cuts off clean-up, too long holds a cancelled GPU."""
SERVER_START = 20.0
"""Client: until a server that it started must answer. Too short fails on a loaded laptop."""
FORK = 10.0
"""Server: until a fork of a template must have connected; then its container starts cold. A fork takes milliseconds."""
EXIT_HOOKS = 30.0
"""`@exit` methods of a container (SDK.md). Longer holds up scale-down and server stop."""
RECONNECT = 60.0
"""Client and container: how long a lost server may stay away. Containers exit after it, inputs are queued again."""
STEADY = 2.0
"""Client: a connection that lasted longer was to a server that works, and RECONNECT counts anew when it breaks. Longer:
long calls fail when the server dies twice. Much shorter: a request that kills each server is asked for ever."""
UNCLAIMED = 120.0
"""Server: how long a result waits in memory for a client that lost its connection. Must exceed RECONNECT."""
USAGE_INTERVAL = 60.0
"""Server: usage rows of living containers. A crash loses at most this much accounting."""
IDLE_EXIT = 600.0
"""Server: with no client, container, work or deployment for this long it ends."""
RETENTION_INTERVAL = 3600.0
RESULTS_KEPT = 7 * 24 * 3600.0
"""SDK.md: results are kept 7 days; after that OutputExpiredError."""
ROWS_KEPT = 30 * 24 * 3600.0
"""Stopped apps, containers and decisions; their logs as long."""
