echo a#b \# ${{ matrix.v }} $'it\'s' > out && { echo ${{ matrix.v }}; } | cat
