x=$(echo ${{ matrix.v }}); y=`date`; echo "${x:-${y}}" ${{ matrix.v }}
