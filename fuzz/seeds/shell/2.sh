cat <<E
$x
E
echo ${{ matrix.v }}
