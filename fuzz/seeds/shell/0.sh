echo ${{ matrix.v }} "$A" 'b'
