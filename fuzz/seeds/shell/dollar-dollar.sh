echo $${ #${{ matrix.v }}
