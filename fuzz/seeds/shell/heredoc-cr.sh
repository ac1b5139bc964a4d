cat <<E
E
echo ${{ matrix.v }}
E
