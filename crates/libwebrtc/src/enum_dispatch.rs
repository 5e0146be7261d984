/// Gives an enum of one-field variants methods that call the same method of the field.
///
/// ```
/// struct Cat;
/// impl Cat {
///     fn legs(&self) -> u8 { 4 }
/// }
/// enum Animal { Cat(Cat) }
/// impl Animal {
///     libwebrtc::enum_dispatch!([Cat]; fn legs(self: &Self) -> u8;);
/// }
/// assert_eq!(Animal::Cat(Cat).legs(), 4);
/// ```
#[macro_export]
macro_rules! enum_dispatch {
    // `self` of a macro's caller reaches a body only as a token: the arguments travel as one tree.
    (@body $this:ident [$($variant:ident),+] $name:ident $arguments:tt) => {
        match $this { $(Self::$variant(field) => field.$name $arguments,)+ }
    };
    (@method $variants:tt $vis:vis fn $name:ident
        ($this:ident: $receiver:ty $(, $argument:ident: $kind:ty)*) -> $result:ty) => {
        #[inline]
        $vis fn $name($this: $receiver, $($argument: $kind),*) -> $result {
            $crate::enum_dispatch!(@body $this $variants $name ($($argument),*))
        }
    };
    ($variants:tt; $($vis:vis fn $name:ident $parameters:tt -> $result:ty;)+) => {
        $($crate::enum_dispatch!(@method $variants $vis fn $name $parameters -> $result);)+
    };
}
