#!/bin/sh
# Tells what a remote machine is and is doing, in sections; latency/machine.py reads it.
section() { printf '\n== %s\n' "$1"; }
cpus=/sys/devices/system/cpu

section node; uname -n
section system; uname -s
section machine; uname -m
section cpuinfo; cat /proc/cpuinfo
section memory; cat /proc/meminfo
section status; cat /proc/self/status
section siblings; cat $cpus/cpu[0-9]*/topology/thread_siblings_list 2>/dev/null
section cache # in bytes, then of each core: its directory and size
getconf LEVEL2_CACHE_SIZE 2>/dev/null
for index in $cpus/cpu[0-9]*/cache/index*; do
    [ "$(cat "$index/level" 2>/dev/null)" = 2 ] && echo "$index $(cat "$index/size")"
done
section load; cat /proc/loadavg
section ticks; head -n 1 /proc/stat
section frequency # of each core: its directory, kHz and governor
for core in $cpus/cpu[0-9]*/cpufreq; do
    [ -r "$core/scaling_cur_freq" ] &&
        echo "$core $(cat "$core/scaling_cur_freq") $(cat "$core/scaling_governor")"
done
exit 0
