#!/bin/sh
# Starts $who in the foreground.
set -eu
set -a
. $folder/fedsam.env
set +a
PATH="$commands:$$PATH"
export PATH
exec $command
