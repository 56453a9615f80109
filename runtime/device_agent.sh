# Runs a command pinned to some cores and looks at its memory meanwhile. POSIX sh; needs taskset, sleep and /proc.
#
#   sh device_agent.sh LIMIT_S MASK COMMAND...
#
# Standard output is the command's, then one line of what was seen (kB). The command is killed when standard input ends
# (whoever started this is gone) and after LIMIT_S seconds. The exit code is the command's.
limit=$1
mask=$2
shift 2

taskset "$mask" "$@" </dev/null &
child=$!
exec 3<&0
(cat <&3 >/dev/null 2>&1; kill -KILL "$child") >/dev/null 2>&1 &
watcher=$!
exec 3<&- </dev/null
trap 'kill -KILL "$child" 2>/dev/null' HUP INT TERM

VmHWM= RssAnon=0 RssFile=0 VmSwap=0 Pss=
rounds=0
end=
while :; do
    hwm=
    while read -r name value _; do
        case $name in
        VmHWM:) hwm=$value ;;
        RssAnon:) [ "$value" -gt "$RssAnon" ] && RssAnon=$value ;;
        RssFile:) [ "$value" -gt "$RssFile" ] && RssFile=$value ;;
        VmSwap:) [ "$value" -gt "$VmSwap" ] && VmSwap=$value ;;
        esac
    done 2>/dev/null <"/proc/$child/status"
    [ -n "$hwm" ] || break # it has ended
    VmHWM=$hwm
    if [ $((rounds % 5)) -eq 0 ]; then # costs the kernel a walk over all pages
        while read -r name value _; do
            [ "$name" = Pss: ] && [ "$value" -gt "${Pss:-0}" ] && Pss=$value
        done 2>/dev/null <"/proc/$child/smaps_rollup"
    fi
    rounds=$((rounds + 1))
    if [ $((rounds / 5)) -ge "$limit" ]; then
        end=limit
        kill -KILL "$child"
        break
    fi
    sleep 0.2 2>/dev/null || sleep 1
done
wait "$child"
code=$?
kill "$watcher" 2>/dev/null
echo "@@ammd code=$code end=$end samples=$rounds VmHWM=$VmHWM RssAnon=$RssAnon RssFile=$RssFile VmSwap=$VmSwap Pss=$Pss"
if [ "$code" -eq 137 ]; then
    logcat -d -t 300 2>/dev/null | grep -i -E 'lowmemorykiller|lmkd' | tail -n 1 >&2
fi
exit "$code"
