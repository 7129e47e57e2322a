#!/bin/sh
# Starts $who in the foreground.
set -eu
umask 077
set -a
. $folder/fedsam.env
set +a
PATH="$commands:$$PATH"
export PATH
exec $command
