echo $'it\'s' ${{ matrix.v }} '
