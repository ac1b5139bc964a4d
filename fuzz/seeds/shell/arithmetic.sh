((i = 1)); echo $((i + $(echo 2))) ${{ matrix.v }}
