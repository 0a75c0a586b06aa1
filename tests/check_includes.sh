#!/usr/bin/env bash
# Includes point down the list of rooms only, a room sees another's contract only, and vendor headers
# stay at home.
cd "$1" || exit 1
rooms=(base world job data backend layer graph transport exchange report optim checkpoint split sync train api cmd)
declare -A level
for i in "${!rooms[@]}"; do level[${rooms[$i]}]=$i; done
bad=0
while IFS=: read -r file _ text; do
    from=$(cut -d/ -f2 <<<"$file")
    header=$(sed -E 's/.*"([^"]+)".*/\1/' <<<"$text")
    to=${header%%/*}
    [ "$from" = main.c ] && continue
    [ "$from" = "$to" ] && continue
    if [ -z "${level[$to]:-}" ] || [ -z "${level[$from]:-}" ]; then
        echo "$file includes $header: no such room"; bad=1
    elif [ "${level[$to]}" -gt "${level[$from]}" ]; then
        echo "$file includes $header: up the list of rooms"; bad=1
    elif [ "$header" != "$to/$to.h" ]; then
        echo "$file includes $header: not the room's contract"; bad=1
    fi
done < <(grep -rnE '#include "' src --include='*.[ch]' --include='*.cu')
home() { # home PATTERN ALLOWED-REGEX
    grep -rnE "#include <($1)" src --include='*.[ch]' --include='*.cu' --include='*.cuh' | grep -vE "$2" && { echo "a vendor header away from home"; bad=1; }
}
home 'mpi\.h' '^src/(world/|transport/mpi/)'
home 'hdf5' '^src/base/h5'
home 'cblas|oneapi|omp\.h' '^src/backend/cpu/'
home 'turbojpeg' '^src/data/'
home 'infiniband|rdma/' '^src/transport/verbs/'
home 'yaml' '^src/job/'
home 'cuda' '^src/backend/cuda/(runtime\.c|[a-z]*\.cuh?):'
home 'cublas' '^src/backend/cuda/matmul\.c:'
home 'nccl' '^src/backend/cuda/reduce\.c:'
home 'cudnn' '^src/backend/cuda/convolve\.c:'
for room in src/*/; do
    r=$(basename "$room")
    grep -nE '#include <(mpi|hdf5|cblas|oneapi|yaml|turbojpeg|cuda|cublas|cudnn|nccl|infiniband)' "$room$r.h" 2>/dev/null && bad=1
done
exit $bad
