#!/bin/bash
# datapool on Slurm: a Ray cluster on all nodes of the job, for one `dvc repro` in the workspace. From the workspace:
#
#   sbatch slurm.sh
#
# The workspace, its images and the environment with datapool lie on a file system that all nodes see under the same path;
# params.yaml has `engine: ray`. What depends on your site says CHANGE.
#SBATCH --job-name=datapool
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --output=datapool-%j.log
##SBATCH --gpus-per-task=1        CHANGE: with GPUs, without the first #
set -euo pipefail

# shellcheck source=/dev/null
source "${DATAPOOL_VENV:-.venv}/bin/activate" # CHANGE: an environment with dvc-datapool[cpu,ray]
export OMP_NUM_THREADS=1 DVC_NO_ANALYTICS=true

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Some nodes print several addresses; the first one is taken.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS="$address:6379"

options=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_PER_TASK:-0}" --object-store-memory 2000000000 --block)
# RAY_ADDRESS would make `ray start --head` join a cluster that is not there yet.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  env -u RAY_ADDRESS ray start --head --node-ip-address="$address" --port=6379 --include-dashboard=false "${options[@]}" &

for _ in $(seq 60); do
  ray health-check --address "$RAY_ADDRESS" 2>/dev/null && break
  sleep 2
done

if ((${#nodes[@]} > 1)); then
  others=$((${#nodes[@]} - 1))
  srun --nodes="$others" --ntasks="$others" --exclude="$head" --overlap \
    ray start --address "$RAY_ADDRESS" "${options[@]}" &
fi

# Workers that come later are used from the next stage on.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap dvc repro
